rule tile:
    """Step 1: one channel of an image as OME-Zarr, its intensity limits and its tiles."""
    input:
        script=step("tile.py"),
        image=image_path,
        model=model_path,
    output:
        store=temp(directory("results/{image}/steps/image.zarr")),
        tiles="results/{image}/steps/tiles.json",
        record="results/{image}/steps/records/tile.json",
    log:
        "logs/tile/{image}.log",
    benchmark:
        "benchmarks/tile/{image}.tsv"
    conda:
        "../../envs/gpu.yaml"
    threads: 1
    resources:
        mem_mb=memory("tile"),
        runtime=minutes("tile"),
    params:
        version=VERSION,
        batches=n_batches,
        core_px=sizes("core_px"),
        halo=sizes("halo"),
        percentiles=config["normalize"]["percentiles"],
        diameter_px=diameter_option,
        options=image_options,
    shell:
        "python {input.script:q}"
        " --image={input.image:q} --name {wildcards.image} --model={input.model:q}"
        " --core-px {params.core_px} --halo {params.halo} --batches {params.batches}"
        " --percentiles {params.percentiles} --diameter-px={params.diameter_px}"
        " {params.options:q}"
        " --output {output.store} --tiles {output.tiles} --record {output.record}"
        " 2> {log}"
