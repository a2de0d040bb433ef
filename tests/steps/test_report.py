import base64
import gzip
import json
import re

import numpy as np
import pandas as pd
import pytest
import tifffile

import finished
import report
from iaunet import planes, synthetic
from iaunet.errors import InputError

URL = re.compile(r"(?:https?:)?//[a-z]", re.IGNORECASE)


def run(options, **more):
    """Write the page and return it."""
    options = {**options, **{f"--{key}": path for key, path in more.items()}}
    report.main([str(text) for item in options.items() for text in item])
    return options["--output"].read_text(encoding="utf-8")


def headings(html):
    return re.findall(r"<h2>(.*?)</h2>", html)


@pytest.fixture(scope="module")
def flat():
    return synthetic.draw_nuclei((200, 260), np.random.default_rng(4), diameter_px=18)


@pytest.fixture(scope="module")
def volume():
    return synthetic.draw_nuclei(
        (24, 96, 110), np.random.default_rng(4), diameter_px=16, spacing=(2, 1, 1)
    )


def test_a_page_needs_no_other_file(tmp_path, flat):
    image, labels = flat
    html = run(finished.write(tmp_path, image, labels, core=(64, 64), pixel_um=(0.5, 0.5)))
    linked = re.findall(r"(?:src|href)=\"(.{5})", html)
    assert linked
    assert set(linked) == {"data:"}
    assert not URL.search(re.sub(r"data:[^\"]*", "", html))
    assert re.findall(r"<script[^>]* src", html) == []
    assert len(html) < 5e6


def test_a_2d_page_has_all_its_parts(tmp_path, flat):
    image, labels = flat
    html = run(finished.write(tmp_path, image, labels, core=(64, 64), pixel_um=(0.5, 0.5)))
    assert headings(html) == [
        "Whole image",
        "Distributions",
        "Close up",
        "Seams",
        "Least confident objects",
        "Numbers",
        "Provenance",
    ]
    for text in ("Typical", "Crowded", "Least confident", "Worst seam", "µm²"):
        assert text in html
    assert f">{labels.max()}<" in html


def figures_of(html):
    """Return what the scripts of a page put together."""
    text = re.search(r'id="figures">data:application/gzip;base64,([^<]+)<', html)[1]
    return json.loads(gzip.decompress(base64.b64decode(text)))


def test_a_3d_page_shows_three_planes_and_projections(tmp_path, volume):
    image, labels = volume
    html = run(finished.write(tmp_path, image, labels, core=(16, 64, 64), pixel_um=(0.6, 0.3, 0.3)))
    for plane in ("XY", "XZ", "ZY"):
        assert html.count(f'<span class="plane">{plane}</span>') == 1
        assert f'id="plane-{plane}"' in html
    assert "Maximum projections" in html
    assert "µm³" in html


@pytest.mark.parametrize(
    ("image", "core"),
    [
        pytest.param(np.full((50, 60), 7, np.uint8), (64, 64), id="constant, one tile"),
        pytest.param(np.arange(9000, dtype=np.float32).reshape(90, 100), (32, 32), id="float"),
        pytest.param(np.zeros((1, 1), np.uint16), (64, 64), id="one pixel"),
        pytest.param(np.zeros((3, 2, 40), np.uint16), (64, 64, 64), id="thin volume"),
    ],
)
def test_an_image_without_objects_has_a_page(tmp_path, image, core):
    labels = np.zeros(image.shape, np.uint32)
    html = run(finished.write(tmp_path, image, labels, core=core))
    assert "No objects." in html
    assert "Close up" not in headings(html)


def test_a_single_object_as_large_as_the_image_has_a_page(tmp_path):
    image = np.random.default_rng(0).integers(0, 99, (70, 70)).astype(np.uint16)
    html = run(finished.write(tmp_path, image, np.ones((70, 70), np.uint32), core=(32, 32)))
    assert "1 object lies on tile borders, in up to 9 tiles" in html


def test_mistakes_are_shown_against_the_reference(tmp_path, flat):
    image, labels = flat
    found = labels.copy()
    found[found == 1] = 0
    found[found == 3] = 2
    found[:8, :8] = labels.max() + 1
    options = finished.write(tmp_path, image, found, core=(64, 64), true=labels)
    tifffile.imwrite(tmp_path / "true.tif", labels)
    html = run(options, reference=tmp_path / "true.tif")
    assert "Against the reference" in headings(html)
    assert "Worst region" in html
    assert 'class="missed"' in html
    assert 'class="true"' in html


def test_a_perfect_result_has_no_mistakes(tmp_path, volume):
    image, labels = volume
    options = finished.write(tmp_path, image, labels, core=(16, 64, 64), true=labels)
    tifffile.imwrite(tmp_path / "true.tif", labels, metadata={"axes": "ZYX"})
    html = run(options, reference=tmp_path / "true.tif")
    assert "No mistake in any region" in html
    assert 'class="missed"' not in html


def test_a_reference_of_another_shape_is_refused(tmp_path, flat):
    image, labels = flat
    options = finished.write(tmp_path, image, labels, core=(64, 64))
    tifffile.imwrite(tmp_path / "true.tif", labels[:50])
    with pytest.raises(InputError, match="same shape"):
        run(options, reference=tmp_path / "true.tif")


def test_flagged_seams_come_first_with_their_evidence(tmp_path, flat):
    image, labels = flat
    options = finished.write(tmp_path, image, labels, core=(64, 64))
    lines = options["--seams"].read_text().splitlines()
    lines[-1] = lines[-1].replace(",,,agreed", ",areas 10 and 12,,conflict")
    options["--seams"].write_text("\n".join(lines) + "\n")
    html = run(options)
    assert "conflict 1" in html
    worst = html[html.index("Worst seam") :]
    assert "areas 10 and 12" in worst[:400]


def test_the_least_sure_links_are_shown(tmp_path, flat):
    image, labels = flat
    options = finished.write(tmp_path, image, labels, core=image.shape)
    seams = pd.read_csv(options["--seams"])
    gid = np.flatnonzero(labels.ravel() > 0)[[0, 40, 90]]
    links = pd.DataFrame(
        {
            "image": "a", "label": labels.ravel()[gid], "gid": gid, "n_tiles": 0, "tiles": "",
            "evidence": "touches fragment 7, 5 faces", "probability": [0.97, 0.55, 0.02],
            "verdict": ["joined", "joined", "apart"],
        }
    )  # fmt: skip
    pd.concat([seams, links]).to_csv(options["--seams"], index=False)
    html = run(options)
    assert "1 apart, 2 joined" in html
    first = html[html.index("Least sure link") :]
    assert "touches fragment 7, 5 faces: one object with a probability of 0.55, joined" in first


def test_metadata_cannot_become_markup(tmp_path, flat):
    image, labels = flat
    html = run(
        finished.write(
            tmp_path,
            image,
            labels,
            core=(64, 64),
            channel="<img src=x onerror=alert(1)>",
            more={"warnings": ["<b>bold</b>"]},
        )
    )
    assert "<img src=x" not in html
    assert "<b>bold" not in html


def test_the_same_inputs_give_the_same_bytes(tmp_path, flat):
    image, labels = flat
    options = finished.write(tmp_path, image, labels, core=(64, 64), pixel_um=(0.5, 0.5))
    assert run(options) == run(options)


def test_of_many_objects_some_can_be_chosen_and_all_are_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(planes, "MOST_OBJECTS", 1000)
    labels = np.zeros((600, 600), np.uint32)
    rows, columns = np.indices(labels.shape)
    inside = (rows % 8 < 5) & (columns % 8 < 5)
    labels[inside] = ((rows // 8) * 75 + columns // 8 + 1)[inside]
    html = run(finished.write(tmp_path, inside * np.uint8(200), labels, core=(256, 256)))
    figures = figures_of(html)
    (section,) = figures["planes"][0]["sections"]
    assert section["overlay"].startswith("data:image/png")
    assert sorted(section["rows"]) == list(range(1000))
    assert (figures["labels"][0], figures["labels"][-1]) == (1, 5625)
    assert "1,000 of 5,625 objects, evenly spread, can be chosen" in html
    assert "Chosen among 5,000 of 5,625 objects" in html
    assert len(html) < 5e6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "cell"), [((1300, 1300), (13, 13)), ((140, 256, 256), (14, 8, 8))]
)
def test_a_page_of_ten_thousand_objects_is_below_five_megabytes(tmp_path, shape, cell):
    rng = np.random.default_rng(0)
    labels, image = np.zeros(shape, np.uint32), rng.poisson(20, shape).astype(np.uint8)
    counts = [length // side for length, side in zip(shape, cell, strict=True)]
    at = np.indices(cell) - (np.array(cell) / 2 - 0.5)[(..., *[None] * len(cell))]
    reach = [0.48 * side for side in cell]
    ball = sum((a / r) ** 2 for a, r in zip(at, reach, strict=True)) < 1
    for label, place in enumerate(np.ndindex(*counts), start=1):
        box = tuple(slice(k * n, (k + 1) * n) for k, n in zip(place, cell, strict=True))
        # No two objects have the same outline.
        labels[box][ball & (rng.random(cell) < 0.97)] = label
    options = finished.write(tmp_path, image, labels, core=(512,) * len(shape), pixel_um=None)
    objects = pd.read_parquet(options["--objects"])
    assert len(objects) >= 10_000
    more = {f"feature_{k}": rng.lognormal(3, 1, len(objects)) for k in range(24)}
    objects.assign(**more).to_parquet(options["--objects"])
    assert len(run(options)) < 5e6


def test_a_damaged_metrics_file_is_named(tmp_path, flat):
    image, labels = flat
    options = finished.write(tmp_path, image, labels, core=(64, 64))
    options["--metrics"].write_text("{")
    with pytest.raises(InputError, match=r"metrics\.json: not valid JSON"):
        run(options)


def test_the_step_is_recorded(tmp_path, flat):
    image, labels = flat
    run(finished.write(tmp_path, image, labels, core=(64, 64)), record=tmp_path / "record.json")
    assert json.loads((tmp_path / "record.json").read_text())["step"] == "report"
