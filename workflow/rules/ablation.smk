rule ablation_images:
    """Ablation, step 1: images and their split."""
    input:
        script=step("ablation_images.py"),
        table=ablation_table(),
    output:
        images=directory("results/ablation/images"),
        fit="results/ablation/fit.csv",
        test="results/ablation/test.csv",
    log:
        "logs/ablation/images.log",
    benchmark:
        "benchmarks/ablation/images.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=scaled(2000),
        runtime=scaled(30),
    params:
        version=VERSION,
        table=ablation_table_option(),
    shell:
        "python {input.script:q}"
        " {params.table:q} --images {output.images} --fit {output.fit} --test {output.test}"
        " 2> {log}"


rule ablation_train:
    """Ablation, step 2: one training."""
    input:
        script=step("train.py"),
        fit="results/ablation/fit.csv",
        images="results/ablation/images",
    output:
        model="results/ablation/models/{trained}-{seed}.safetensors",
        record="results/ablation/models/{trained}-{seed}.json",
    log:
        "logs/ablation/train/{trained}-{seed}.log",
    benchmark:
        "benchmarks/ablation/train/{trained}-{seed}.tsv"
    conda:
        "../../envs/gpu.yaml"
    threads: 1
    resources:
        mem_mb=scaled(4000),
        runtime=scaled(240),
    params:
        version=VERSION,
        options=ablation_options,
        steps=config["ablation"]["steps"],
        device=config["device"],
    shell:
        "python {input.script:q}"
        " --table {input.fit} --name ablation-{wildcards.trained}-{wildcards.seed}"
        " {params.options} --no-validate --crop-px 128 128"
        " --output {output.model}"
        " --work training/ablation/{params.steps}/{wildcards.trained}-{wildcards.seed}"
        " --max-minutes 0 --max-steps {params.steps} --seed {wildcards.seed}"
        " --threads {threads} --device {params.device} --record {output.record}"
        " 2> {log}"


rule ablation_score:
    """Ablation, step 3: its scores."""
    input:
        script=step("ablation_score.py"),
        model=ablation_model("safetensors"),
        training=ablation_model("json"),
        fit="results/ablation/fit.csv",
        test="results/ablation/test.csv",
        images="results/ablation/images",
    output:
        scores="results/ablation/scores/{row}-{seed}.csv",
        facts="results/ablation/scores/{row}-{seed}.json",
    log:
        "logs/ablation/score/{row}-{seed}.log",
    benchmark:
        "benchmarks/ablation/score/{row}-{seed}.tsv"
    conda:
        "../../envs/gpu.yaml"
    threads: 1
    resources:
        mem_mb=scaled(4000),
        runtime=scaled(120),
    params:
        version=VERSION,
        clustering=ablation_clustering,
        links=ablation_links,
    shell:
        "python {input.script:q}"
        " --model {input.model} --training {input.training} --row {wildcards.row} --seed {wildcards.seed}"
        " --clustering {params.clustering} {params.links}"
        " --fit {input.fit} --test {input.test} --threads {threads}"
        " --scores {output.scores} --facts {output.facts}"
        " 2> {log}"


rule ablation:
    """Another target: what every part of the method is worth."""
    input:
        script=step("ablation_table.py"),
        rows=ablation_rows_file(),
        scores=ablation_files("results/ablation/scores/{row}-{seed}.csv"),
        facts=ablation_files("results/ablation/scores/{row}-{seed}.json"),
    output:
        csv="docs/ablation/ablation.csv",
        page="docs/ablation/ablation.md",
        png="docs/ablation/ablation.png",
    log:
        "logs/ablation/table.log",
    benchmark:
        "benchmarks/ablation/table.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=scaled(2000),
        runtime=scaled(30),
    params:
        version=VERSION,
    shell:
        "python {input.script:q}"
        " --rows {input.rows:q} --scores {input.scores} --facts {input.facts}"
        " --output-csv {output.csv} --output-md {output.page} --output-png {output.png}"
        " 2> {log}"
