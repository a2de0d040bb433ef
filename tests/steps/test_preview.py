"""A first look shows what the run will find."""

import re

import numpy as np
import pytest
import tifffile
import torch

import preview
from iaunet import backends, checkpoint, clustering, normalize, predict, synthetic
from iaunet.errors import InputError, OptionError
from iaunet.settings import Settings
from runs import REPOSITORY

MODELS = REPOSITORY / "resources/models"


def drawn(folder, ndim):
    rng = np.random.default_rng(3)
    shape = {2: (500, 620), 3: (24, 150, 260)}[ndim]
    image, _ = synthetic.draw_nuclei(shape, rng, diameter_px={2: 22, 3: 16}[ndim])
    tifffile.imwrite(folder / "a.tif", image)
    return image


def run(folder, *more):
    words = ["--image", str(folder / "a.tif"), "--output", str(folder / "page.html")]
    preview.main([*words, *more])
    return (folder / "page.html").read_text()


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_places_have_the_objects_of_the_whole_image(tmp_path, monkeypatch, ndim):
    image = drawn(tmp_path, ndim)
    seen = []
    kept = preview.labelled

    def labelled(place, *more):
        seen.append((place, kept(place, *more)))
        return seen[-1][1]

    monkeypatch.setattr(preview, "labelled", labelled)
    html = run(tmp_path, "--diameter-px", "native")
    net, meta = checkpoint.load(MODELS / f"nuclei-{ndim}d.safetensors")
    limits = normalize.limits(image, (1, 99.8))
    scaled = normalize.scale(image, limits.low, limits.high).clip(*predict.CLIP)
    engine = backends.prepare(net, "auto", "auto", torch.device("cpu"), 1)
    settings = Settings.from_dict(meta["clustering"], ndim)
    whole = clustering.label_array(predict.whole(engine, scaled), settings, net.id_stride)
    assert len(seen) >= 2
    n_objects = 0
    for place, labels in seen:
        expected = whole[place.box]
        assert ((labels > 0) == (expected > 0)).mean() > 0.999
        pairs = np.unique(np.stack([labels.ravel(), expected.ravel()]), axis=1, return_counts=True)
        large = pairs[1] > 20
        here = [ids[large][(pairs[0][:, large] > 0).all(0)] for ids in pairs[0]]
        assert len(here[0]) == len(set(here[0])) == len(set(here[1]))
        n_objects += len(here[0])
        assert f"{place.name} · settings of the model" in html
    assert n_objects > 20


def test_settings_are_compared(tmp_path):
    drawn(tmp_path, 2)
    html = run(tmp_path, "--diameter-px", "native", "--sweep", "min_size=16,100000")
    rows = re.findall(
        r"<td>(min_size = \d+)</td><td>(\d+)</td><td>[^<]*</td><td>([^<]*)</td>", html
    )
    (first, n, same), (_, none, gone) = rows
    assert (first, same) == ("min_size = 16", f"{n} same, 0 new, 0 gone")
    assert int(n) > 20
    assert (none, gone) == ("0", f"0 same, 0 new, {n} gone")


def test_an_image_without_anything_has_a_page(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((300, 200), np.uint8))
    assert "0 objects" in run(tmp_path)


def test_names_cannot_become_markup(tmp_path):
    name = "<b onclick=x>.tif"
    tifffile.imwrite(tmp_path / name, np.zeros((64, 64), np.uint8))
    preview.main(["--image", str(tmp_path / name), "--output", str(tmp_path / "page.html")])
    assert "<b onclick" not in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        (["--sweep", "seed=0.4"], OptionError, "--sweep: found 'seed=0.4', needs KEY=V1,V2"),
        (["--sweep", "sead=0.4,0.5"], InputError, "sead"),
        (["--model", "nuclei-3d"], InputError, "2 axes, the model .* needs 3"),
        (["--model", "nothing-there"], InputError, "nothing-there"),
    ],
)
def test_what_cannot_be_done_is_told(tmp_path, more, error, message):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((64, 64), np.uint8))
    with pytest.raises(error, match=message):
        run(tmp_path, *more)
    assert not (tmp_path / "page.html").exists()
