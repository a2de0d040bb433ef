rule measure:
    """Step 5: objects, accuracy and provenance of an image."""
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
        metrics=report(
            "results/{image}/metrics.json",
            caption="../report/image.rst",
            category="Images",
            subcategory="{image}",
            labels={"image": "{image}", "what": "metrics"},
        ),
        provenance=report(
            "results/{image}/provenance.json",
            caption="../report/image.rst",
            category="Images",
            subcategory="{image}",
            labels={"image": "{image}", "what": "provenance"},
        ),
    log:
        "logs/measure/{image}.log",
    benchmark:
        "benchmarks/measure/{image}.tsv"
    priority: 6
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=memory("measure"),
        runtime=minutes("measure"),
    params:
        version=VERSION,
        reference=reference_option,
        config=image_config,
    shell:
        "python {input.script:q}"
        " --store {input.store} --tiles {input.tiles} --identities {input.identities}"
        " --seams {input.seams} {params.reference:q} --records {input.records}"
        " --config={params.config:q}"
        " --output-csv {output.csv} --output-parquet {output.parquet}"
        " --metrics {output.metrics} --provenance {output.provenance}"
        " 2> {log}"


# The last step of an image: it fails while tiles are left out, so that they are redone.
rule report:
    """Step 6: the page of an image."""
    input:
        script=step("report.py"),
        store="results/{image}/{image}.ome.zarr",
        tiles="results/{image}/steps/tiles.json",
        objects="results/{image}/objects.parquet",
        metrics="results/{image}/metrics.json",
        provenance="results/{image}/provenance.json",
        seams="results/{image}/seams.csv",
        reference=reference_path,
        kept=kept_until_complete,
    output:
        page=report(
            "results/{image}/report.html",
            caption="../report/image.rst",
            category="Images",
            subcategory="{image}",
            labels={"image": "{image}", "what": "page"},
        ),
        complete="results/{image}/steps/complete.json",
    log:
        "logs/report/{image}.log",
    benchmark:
        "benchmarks/report/{image}.tsv"
    priority: 7
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=memory("report"),
        runtime=minutes("report"),
    params:
        version=VERSION,
        reference=reference_option,
    shell:
        "python {input.script:q}"
        " --store {input.store} --objects {input.objects} --metrics {input.metrics}"
        " --provenance {input.provenance} --seams {input.seams} --tiles {input.tiles}"
        " {params.reference:q} --output {output.page} --complete {output.complete}"
        " 2> {log}"


rule export_labels:
    """Step 6a, where asked for: files for QuPath, ImageJ, Fiji and scanpy."""
    input:
        script=step("export_labels.py"),
        store="results/{image}/{image}.ome.zarr",
        objects="results/{image}/objects.parquet",
    output:
        "results/{image}/exports/{image}.{suffix}",
    log:
        "logs/export_labels/{image}/{suffix}.log",
    benchmark:
        "benchmarks/export_labels/{image}/{suffix}.tsv"
    priority: 8
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=scaled(4000),
        runtime=scaled(120),
    params:
        version=VERSION,
        to=export_format,
    shell:
        "python {input.script:q}"
        " --to {params.to} --store {input.store} --objects {input.objects}"
        " --output {output}"
        " 2> {log}"


rule summarize:
    """Step 7: table and page of the run."""
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
        expanded=EXPANDED,
    shell:
        "python {input.script:q}"
        " --table={input.table:q} --results results --model={params.model:q}"
        " --expanded {params.expanded}"
        " --output-csv {output.csv} --output-html {output.html}"
        " 2> {log}"


rule crate:
    """Step 8: the run as a Workflow Run RO-Crate."""
    input:
        script=step("crate.py"),
        snakefile=workflow_file(),
        table=table_path(),
        csv="results/summary.csv",
        html="results/summary.html",
        provenance=per_image("results/{image}/provenance.json"),
    output:
        parts=directory("results/ro-crate"),
        metadata="results/ro-crate-metadata.json",
    log:
        "logs/crate/run.log",
    benchmark:
        "benchmarks/crate/run.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=scaled(2000),
        runtime=scaled(60),
    params:
        version=VERSION,
        config=run_config(),
        expanded=EXPANDED,
    shell:
        "python {input.script:q}"
        " --summary {input.csv} --table={input.table:q} --config={params.config:q}"
        " --expanded {params.expanded}"
        " --snakefile={input.snakefile:q} --results results"
        " --parts {output.parts} --output {output.metadata}"
        " 2> {log}"


rule plan:
    """Before: what the run will take: jobs, memory, disk, hours."""
    input:
        script=step("plan.py"),
        table=table_path(),
    output:
        report(
            "results/plan.csv",
            caption="../report/run.rst",
            category="Run",
            labels={"image": "all", "what": "plan"},
        ),
    log:
        "logs/plan/run.log",
    benchmark:
        "benchmarks/plan/run.tsv"
    conda:
        "../../envs/gpu.yaml"
    threads: 1
    resources:
        mem_mb=scaled(12000),
        runtime=scaled(60),
    params:
        version=VERSION,
        config=run_config(),
    shell:
        "printf '%s' {params.config:q} |"
        " python {input.script:q} --config - --output {output}"
        " 2> {log}"
