localrules:
    complete,


rule measure:
    input:
        script=step("measure.py"),
        store="results/{image}/{image}.ome.zarr",
        tiles="results/{image}/steps/tiles.json",
        identities="results/{image}/steps/identities.parquet",
        seams="results/{image}/seams.csv",
        reference=reference_path,
        records=step_records,
    output:
        csv=report(
            "results/{image}/objects.csv",
            caption="../report/image.rst",
            category="Images",
            subcategory="{image}",
            labels={"image": "{image}", "what": "objects"},
        ),
        parquet="results/{image}/objects.parquet",
        metrics="results/{image}/metrics.json",
        provenance="results/{image}/provenance.json",
    log:
        "logs/measure/{image}.log",
    benchmark:
        "benchmarks/measure/{image}.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=scaled(4000),
        runtime=scaled(120),
    params:
        version=VERSION,
        reference=reference_option,
    shell:
        "python {input.script:q}"
        " --store {input.store} --tiles {input.tiles} --identities {input.identities}"
        " --seams {input.seams} {params.reference:q} --records {input.records}"
        " --output-csv {output.csv} --output-parquet {output.parquet}"
        " --metrics {output.metrics} --provenance {output.provenance}"
        " 2> {log}"


rule report:
    input:
        script=step("report.py"),
        store="results/{image}/{image}.ome.zarr",
        tiles="results/{image}/steps/tiles.json",
        objects="results/{image}/objects.parquet",
        metrics="results/{image}/metrics.json",
        provenance="results/{image}/provenance.json",
        seams="results/{image}/seams.csv",
        reference=reference_path,
    output:
        report(
            "results/{image}/report.html",
            caption="../report/image.rst",
            category="Images",
            subcategory="{image}",
            labels={"image": "{image}", "what": "page"},
        ),
    log:
        "logs/report/{image}.log",
    benchmark:
        "benchmarks/report/{image}.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=scaled(4000),
        runtime=scaled(60),
    params:
        version=VERSION,
        reference=reference_option,
    shell:
        "python {input.script:q}"
        " --store {input.store} --objects {input.objects} --metrics {input.metrics}"
        " --provenance {input.provenance} --seams {input.seams} --tiles {input.tiles}"
        " {params.reference:q} --output {output}"
        " 2> {log}"


# What comes between the steps are inputs, so that it stays until no tile is left out; and records,
# so that a batch without one is redone.
rule complete:
    input:
        script=step("complete.py"),
        metrics=ancient("results/{image}/metrics.json"),
        page=ancient("results/{image}/report.html"),
        store="results/{image}/steps/image.zarr",
        outputs=per_batch("results/{image}/steps/outputs/{batch}.zarr"),
        labels=per_batch("results/{image}/steps/labels/{batch}.zarr"),
        tables=per_batch("results/{image}/steps/labels/{batch}.parquet"),
        sightings=per_batch("results/{image}/steps/labels/{batch}.sightings.parquet"),
        contacts=per_batch("results/{image}/steps/labels/{batch}.contacts.parquet"),
        inferred=per_batch("results/{image}/steps/records/infer-{batch}.json"),
        clustered=per_batch("results/{image}/steps/records/cluster-{batch}.json"),
    output:
        "results/{image}/steps/complete.json",
    log:
        "logs/complete/{image}.log",
    benchmark:
        "benchmarks/complete/{image}.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=scaled(500),
        runtime=scaled(10),
    params:
        version=VERSION,
    shell:
        "python {input.script:q} --metrics {input.metrics} --output {output} 2> {log}"


rule summarize:
    input:
        script=step("summarize.py"),
        table=table_path(),
        metrics=per_image("results/{image}/metrics.json"),
        pages=per_image("results/{image}/report.html"),
    output:
        csv=report(
            "results/summary.csv",
            caption="../report/run.rst",
            category="Run",
            labels={"image": "all", "what": "table"},
        ),
        html=report(
            "results/summary.html",
            caption="../report/run.rst",
            category="Run",
            labels={"image": "all", "what": "page"},
        ),
    log:
        "logs/summarize/run.log",
    benchmark:
        "benchmarks/summarize/run.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=scaled(2000),
        runtime=scaled(60),
    params:
        version=VERSION,
        model=config["model"],
    shell:
        "python {input.script:q}"
        " --table={input.table:q} --results results --model={params.model:q}"
        " --output-csv {output.csv} --output-html {output.html}"
        " 2> {log}"
