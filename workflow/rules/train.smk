rule train:
    """Another target: a model from annotated images."""
    input:
        script=step("train.py"),
        table=training_table,
        start=training_start,
    output:
        model="results/training/{name}.safetensors".format(
            name=config["training"]["name"]
        ),
        csv="results/training/{name}.csv".format(name=config["training"]["name"]),
        png=report(
            "results/training/{name}.png".format(name=config["training"]["name"]),
            caption="../report/training.rst",
            category="Training",
            labels={"model": config["training"]["name"], "what": "curves"},
        ),
        card=report(
            "results/training/{name}.md".format(name=config["training"]["name"]),
            caption="../report/training.rst",
            category="Training",
            labels={"model": config["training"]["name"], "what": "card"},
        ),
        record="results/training/{name}.json".format(name=config["training"]["name"]),
    log:
        "logs/train/{name}.log".format(name=config["training"]["name"]),
    benchmark:
        "benchmarks/train/{name}.tsv".format(name=config["training"]["name"])
    conda:
        "../../envs/gpu.yaml"
    threads: 2
    resources:
        mem_mb=scaled(8000),
        runtime=scaled(1440),
    params:
        version=VERSION,
        name=config["training"]["name"],
        minutes=config["training"]["minutes"],
        steps=config["training"]["steps"],
        seed=config["training"]["seed"],
        start=start_option,
        classes=config["training"]["classes"],
        device=config["device"],
    shell:
        "python {input.script:q}"
        " --table={input.table:q} --name {params.name} --output {output.model}"
        " --card {output.card} --curves-csv {output.csv} --curves-png {output.png}"
        " --work training/{params.name}"
        " --max-minutes {params.minutes} --max-steps {params.steps} --seed {params.seed}"
        " {params.start:q} --classes {params.classes:q}"
        " --threads {threads} --device {params.device} --record {output.record}"
        " 2> {log}"
