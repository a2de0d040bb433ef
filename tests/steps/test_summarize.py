import json
import os
import re

import numpy as np
import pandas as pd
import pytest

import summarize
from iaunet import omezarr
from iaunet.errors import InputError

GOOD = {"n_objects": 12, "seam_conflicts": 0, "warnings": [], "seconds": 2.5, "shape": [8, 9]}
SCORES = {"ap50": 0.5, "ap_mean": 0.25, "tp_50": 6, "fp_50": 3, "fn_50": 3, "n_true": 9}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "results").mkdir()
    return tmp_path


def write(folder, images):
    """Write a table and the metrics of its images: None for one that has none."""
    lines = ["image,path,group,model"]
    for name, metrics in images.items():
        lines.append(f"{name},{name}.tif,g,nuclei-2d")
        if metrics is not None:
            home = folder / "results" / name
            home.mkdir()
            (home / "metrics.json").write_text(json.dumps(metrics))
            (home / "report.html").write_text("")
    (folder / "images.csv").write_text("\n".join(lines) + "\n")


def run(folder, *more):
    results = folder / "results"
    summarize.main(
        ["--table", f"{folder / 'images.csv'}", "--results", f"{results}", "--output-csv"]
        + [f"{results / 'summary.csv'}", "--output-html", f"{results / 'summary.html'}"]
        + [str(text) for text in more]
    )
    frame = pd.read_csv(results / "summary.csv", keep_default_na=False, dtype=str)
    return frame.set_index("image"), (results / "summary.html").read_text(encoding="utf-8")


def test_every_row_of_the_table_has_a_row_in_its_order(folder):
    write(folder, {"b": GOOD, "a": None, "c": GOOD})
    frame, html = run(folder)
    assert frame.index.tolist() == ["b", "a", "c"]
    assert frame["status"].tolist() == ["ok", "failed", "ok"]
    assert frame.columns[:4].tolist() == ["group", "status", "model", "n_objects"]
    assert frame.columns[-1] == "reason"
    assert frame.loc["b", "n_objects"] == "12"
    assert 'href="b/report.html"' in html
    assert 'href="a/report.html"' not in html


def test_an_image_without_a_reason_is_not_finished(folder):
    write(folder, {"a": None})
    frame, _ = run(folder)
    assert frame.loc["a", "reason"] == "not finished"


@pytest.mark.parametrize("log", ["tile/a.log", "infer/a/3.log"])
def test_the_last_error_of_the_logs_is_the_reason(folder, log):
    write(folder, {"a": None})
    file = folder / "logs" / log
    file.parent.mkdir(parents=True)
    file.write_bytes(b"tile: starts\nerror: first\nerror: a.tif: truncated \xff TIFF\nend\n")
    frame, _ = run(folder, "--logs", folder / "logs")
    assert frame.loc["a", "reason"].startswith("a.tif: truncated")


def test_the_newest_log_counts_and_that_of_another_image_does_not(folder):
    write(folder, {"a": None})
    for age, (name, text) in enumerate(
        {"x/b": "of b", "tile/a": "new", "infer/a/0": "old"}.items()
    ):
        file = folder / "logs" / f"{name}.log"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"error: {text}\n")
        os.utime(file, (1e9 - age, 1e9 - age))
    frame, _ = run(folder, "--logs", folder / "logs")
    assert frame.loc["a", "reason"] == "new"


def test_a_given_reason_wins(folder):
    write(folder, {"a": None, "b": GOOD})
    (folder / "why.json").write_text(json.dumps({"a": "killed\nby the node", "b": "page failed"}))
    frame, _ = run(folder, "--failures", folder / "why.json")
    assert frame["reason"].tolist() == ["killed by the node", "page failed"]
    assert frame["status"].tolist() == ["failed", "failed"]


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_file_that_holds_no_reasons_is_refused(folder, text):
    write(folder, {"a": None})
    (folder / "why.json").write_text(text)
    with pytest.raises(InputError, match=r"needs {image: reason}"):
        run(folder, "--failures", folder / "why.json")


def test_warnings_stand_in_the_reason_of_a_good_image(folder):
    write(folder, {"a": {**GOOD, "warnings": ["no objects", "the image is constant"]}})
    frame, _ = run(folder)
    assert frame.loc["a", ["status", "reason"]].tolist() == [
        "ok",
        "no objects; the image is constant",
    ]


def test_damaged_metrics_are_a_failure_not_a_crash(folder):
    write(folder, {"a": GOOD})
    (folder / "results/a/metrics.json").write_text("{")
    frame, _ = run(folder)
    assert frame.loc["a", "status"] == "failed"


def test_accuracy_has_columns_only_with_a_reference(folder):
    write(folder, {"a": GOOD})
    assert "ap50" not in run(folder)[0].columns
    write_again = {**GOOD, **SCORES}
    (folder / "results/a/metrics.json").write_text(json.dumps(write_again))
    frame, html = run(folder)
    assert {"ap50", "ap75", "ap_mean", "f1_50", "pq", "aji", "split_rate", "merge_rate"} <= set(
        frame.columns
    )
    assert frame.loc["a", "ap50"] == "0.5"
    assert "AP50 of all objects" in html


def test_the_worst_image_comes_first_on_the_page(folder):
    write(
        folder,
        {
            "fine": {**GOOD, "ap50": 0.9},
            "poor": {**GOOD, "ap50": 0.2},
            "unsized": {**GOOD, "warnings": ["pixel size unknown: no values in micrometres"]},
            "warned": {**GOOD, "warnings": ["no objects"]},
            "torn": {**GOOD, "seam_conflicts": 2},
            "lost": None,
        },
    )
    _, html = run(folder)
    shown = re.findall(r'<td class="wrap name" data-v="(\w+)">', html)
    assert shown == ["lost", "torn", "warned", "poor", "fine", "unsized"]


def test_accuracy_of_a_group_is_pooled_over_its_objects():
    rows = [{"tp_50": 1, "fp_50": 0, "fn_50": 0}, {"tp_50": 0, "fp_50": 1, "fn_50": 8}, {}]
    assert summarize.pooled_ap50(rows) == pytest.approx(0.1)
    assert summarize.pooled_ap50([{}]) is None


def test_text_of_the_table_cannot_become_markup(folder):
    write(folder, {"a": GOOD})
    (folder / "images.csv").write_text("image,path,group\na,a.tif,<script>x()</script>\n")
    _, html = run(folder)
    assert "<script>x()" not in html


def test_a_finished_image_has_a_small_picture(folder):
    write(folder, {"a": GOOD, "b": GOOD})
    store = folder / "results/a/a.ome.zarr"
    group = omezarr.create_image(store, (3, 20, 30), "zyx", np.uint16, None, "a", {})
    group["0"][...] = np.arange(1800).reshape(3, 20, 30)
    _, html = run(folder)
    assert html.count("data:image/jpeg") == 1


def test_an_empty_table_has_a_page(folder):
    write(folder, {})
    frame, html = run(folder)
    assert len(frame) == 0
    assert "<table" in html


def test_the_same_inputs_give_the_same_bytes(folder):
    write(folder, {"a": GOOD, "b": None})
    assert run(folder)[1] == run(folder)[1]


def test_a_plan_is_shown_against_what_was_measured(folder):
    write(folder, {"a": GOOD, "b": GOOD, "c": None})
    steps = [
        {"step": "tile", "cpu_seconds": 1800, "peak_memory_mb": 100, "output_bytes": 2e6},
        {"step": "infer", "cpu_seconds": 9, "seconds": 1800, "device": "cuda:0"}
        | {"peak_memory_mb": 2000, "output_bytes": 3e6},
    ]
    provenance = {"steps": steps, "outputs": {"a.ome.zarr": {"bytes": 4_000_000}}}
    (folder / "results/a/provenance.json").write_text(json.dumps(provenance))
    columns = dict.fromkeys(summarize.PLANNED, "")
    planned = {"core_hours": 1.5, "final_mb": 5, "temporary_mb": 6, "peak_mb_infer": 2500}
    planned |= {"peak_mb_tile": 120, "peak_mb_report": 300}
    rows = [{"image": name, **columns, **planned} for name in "ac"]
    pd.DataFrame(rows).to_csv(folder / "results/plan.csv", index=False)
    frame, html = run(folder)
    assert frame.loc["a", "planned_core_hours"] == "1.5"
    assert frame.loc["a", "core_hours"] == "1.0"  # a graphics card counts while it is held
    assert (frame.loc["a", "final_mb"], frame.loc["a", "temporary_mb"]) == ("4.0", "5.0")
    assert frame.loc["b", "planned_core_hours"] == frame.loc["c", "core_hours"] == ""
    assert frame.columns[-1] == "reason"
    shown = re.sub(r"<[^>]+>|\s+", " ", html[html.index("<h2>Plan") : html.index(">Images</h2>")])
    assert "memory of infer, MB, largest job 2,500 2,000" in " ".join(shown.split())
    assert "report" not in shown  # it is made after the provenance
    (folder / "results/plan.csv").write_text("image\na\n")
    with pytest.raises(InputError, match=r"plan\.csv"):
        run(folder)


def test_without_a_plan_there_is_none_to_show(folder):
    write(folder, {"a": GOOD})
    frame, html = run(folder)
    assert "<h2>Plan" not in html
    assert not [name for name in frame.columns if name.startswith("planned")]


def test_what_an_image_took_is_told(folder):
    write(folder, {"a": GOOD})
    steps = [{"step": "tile", "peak_memory_mb": 90.5}, {"step": "infer", "peak_memory_mb": 700}]
    (folder / "results/a/provenance.json").write_text(json.dumps({"steps": steps}))
    frame, html = run(folder)
    assert frame.loc["a", ["peak_memory_mb", "objects_per_s"]].tolist() == ["700.0", "4.8"]
    assert "objects per s" in html


@pytest.mark.parametrize(("n", "side"), [(0, 96), (1, 96), (1000, 44), (1900, 32), (5000, None)])
def test_pictures_shrink_when_there_are_many(n, side):
    assert summarize.thumbnail_px(n) == side


def test_rows_can_be_found_by_group_and_status(folder):
    write(folder, {"a": GOOD, "b": None, "c": {**GOOD, "warnings": ["no objects"]}})
    _, html = run(folder)
    assert re.findall(r'<tr data-image="(.)" data-group="g" data-status="(\w+)">', html) == [
        ("b", "failed"),
        ("c", "look"),
        ("a", "ok"),
    ]
    assert re.findall(r'<option value="(\w+)">\1</option>', html) == ["failed", "look", "ok"]
    assert '<option value="=g">g</option>' in html
