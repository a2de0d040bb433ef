rule infer:
    """Step 2: what the network says of a batch of tiles."""
    input:
        script=step("infer.py"),
        store="results/{image}/steps/image.zarr",
        tiles="results/{image}/steps/tiles.json",
        model=model_path,
    output:
        outputs=temp(directory("results/{image}/steps/outputs/{batch}.zarr")),
        record="results/{image}/steps/records/infer-{batch}.json",
    log:
        "logs/infer/{image}/{batch}.log",
    benchmark:
        "benchmarks/infer/{image}/{batch}.tsv"
    priority: 1
    conda:
        "../../envs/gpu.yaml"
    threads: spare_threads("infer")
    resources:
        mem_mb=memory("infer"),
        runtime=minutes("infer"),
    params:
        version=VERSION,
        device=config["device"],
        backend=config["backend"],
        precision=config["precision"],
    shell:
        "OMP_NUM_THREADS=1 python {input.script:q}"
        " --store {input.store} --tiles {input.tiles} --model={input.model:q}"
        " --batch {wildcards.batch} --device {params.device} --backend {params.backend}"
        " --precision {params.precision} --threads {threads}"
        " --output {output.outputs} --record {output.record}"
        " 2> {log}"


rule cluster:
    """Step 3: the objects of a batch of tiles."""
    input:
        script=step("cluster.py"),
        tiles="results/{image}/steps/tiles.json",
        model=model_path,
        outputs=per_batch("results/{image}/steps/outputs/{batch}.zarr"),
    output:
        labels=temp(directory("results/{image}/steps/labels/{batch}.zarr")),
        table=temp("results/{image}/steps/labels/{batch}.parquet"),
        sightings=temp("results/{image}/steps/labels/{batch}.sightings.parquet"),
        contacts=temp("results/{image}/steps/labels/{batch}.contacts.parquet"),
        record="results/{image}/steps/records/cluster-{batch}.json",
    log:
        "logs/cluster/{image}/{batch}.log",
    benchmark:
        "benchmarks/cluster/{image}/{batch}.tsv"
    priority: 2
    conda:
        "../../envs/gpu.yaml"
    threads: spare_threads("cluster")
    resources:
        mem_mb=memory("cluster"),
        runtime=minutes("cluster"),
    params:
        version=VERSION,
        settings=clustering_options,
        device=cluster_device,
    shell:
        "python {input.script:q}"
        " --tiles {input.tiles} --model={input.model:q} --outputs {input.outputs}"
        " --batch {wildcards.batch} --set {params.settings}"
        " --device {params.device} --threads {threads}"
        " --output {output.labels} --table {output.table} --sightings {output.sightings}"
        " --contacts {output.contacts}"
        " --record {output.record}"
        " 2> {log}"
