rule number:
    """Step 4a, above 4 gigavoxels: the number of every object."""
    input:
        script=step("number.py"),
        tiles="results/{image}/steps/tiles.json",
        labels=per_batch("results/{image}/steps/labels/{batch}.zarr"),
        tables=per_batch("results/{image}/steps/labels/{batch}.parquet"),
        sightings=per_batch("results/{image}/steps/labels/{batch}.sightings.parquet"),
        contacts=per_batch("results/{image}/steps/labels/{batch}.contacts.parquet"),
    output:
        numbers=temp("results/{image}/steps/painted/numbers.parquet"),
        record="results/{image}/steps/records/number.json",
    log:
        "logs/number/{image}.log",
    benchmark:
        "benchmarks/number/{image}.tsv"
    priority: 3
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=memory("number"),
        runtime=minutes("number"),
    params:
        version=VERSION,
    shell:
        "python {input.script:q}"
        " --tiles {input.tiles} --labels {input.labels} --tables {input.tables}"
        " --sightings {input.sightings} --contacts {input.contacts}"
        " --output {output.numbers} --record {output.record}"
        " 2> {log}"


rule paint:
    """Step 4b, above 4 gigavoxels: the labels of a part of the image."""
    input:
        script=step("paint.py"),
        tiles="results/{image}/steps/tiles.json",
        labels=per_batch("results/{image}/steps/labels/{batch}.zarr"),
        numbers="results/{image}/steps/painted/numbers.parquet",
    output:
        painted=temp(directory("results/{image}/steps/painted/{part}.zarr")),
        counts=temp("results/{image}/steps/painted/{part}.parquet"),
        record="results/{image}/steps/records/paint-{part}.json",
    log:
        "logs/paint/{image}/{part}.log",
    benchmark:
        "benchmarks/paint/{image}/{part}.tsv"
    priority: 4
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=memory("paint"),
        runtime=minutes("paint"),
    params:
        version=VERSION,
        parts=n_parts,
    shell:
        "python {input.script:q}"
        " --tiles {input.tiles} --labels {input.labels} --numbers {input.numbers}"
        " --part {wildcards.part} --parts {params.parts}"
        " --output {output.painted} --counts {output.counts} --record {output.record}"
        " 2> {log}"


rule stitch:
    """Step 4: proof that all tiles agree, and the OME-Zarr with the labels."""
    input:
        script=step("stitch.py"),
        store="results/{image}/steps/image.zarr",
        tiles="results/{image}/steps/tiles.json",
        labels=per_batch("results/{image}/steps/labels/{batch}.zarr"),
        tables=per_batch("results/{image}/steps/labels/{batch}.parquet"),
        sightings=per_batch("results/{image}/steps/labels/{batch}.sightings.parquet"),
        contacts=per_batch("results/{image}/steps/labels/{batch}.contacts.parquet"),
        painted=per_part("results/{image}/steps/painted/{part}.zarr"),
        counts=per_part("results/{image}/steps/painted/{part}.parquet"),
        model=model_path,
    output:
        store=directory("results/{image}/{image}.ome.zarr"),
        identities="results/{image}/steps/identities.parquet",
        seams=report(
            "results/{image}/seams.csv",
            caption="../report/image.rst",
            category="Images",
            subcategory="{image}",
            labels={"image": "{image}", "what": "seams"},
        ),
        record="results/{image}/steps/records/stitch.json",
    log:
        "logs/stitch/{image}.log",
    benchmark:
        "benchmarks/stitch/{image}.tsv"
    priority: 5
    conda:
        "../../envs/gpu.yaml"
        if config["stitching"]["verify_windows"]
        else "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=stitch_memory,
        runtime=minutes("stitch"),
    params:
        version=VERSION,
        verify=config["stitching"]["verify_windows"],
        device=config["device"],
    shell:
        "python {input.script:q}"
        " --store {input.store} --tiles {input.tiles}"
        " --labels {input.labels} --tables {input.tables} --sightings {input.sightings}"
        " --contacts {input.contacts} --painted {input.painted} --counts {input.counts}"
        " --output {output.store} --identities {output.identities} --seams {output.seams}"
        " --verify {params.verify} --model={input.model:q} --device {params.device}"
        " --record {output.record}"
        " 2> {log}"
