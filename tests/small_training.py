"""train.py with crops, steps and a search so small that a test can run it in processes.

Used as ``python small_training.py OPTIONS``; the fixtures of tests use `make_small`, too.
"""

import sys
from pathlib import Path

SMALL = {"zoom": (0.8, 1.2), "small_px": 0, "zoom_small": (1, 1), "anisotropy": 1, "empty": 0.1}


def make_small(set_attribute):
    """Make training small; `set_attribute(module, name, value)` is setattr, or undoes itself."""
    from iaunet import patches, recipes, tuning
    from nets import OPTIONS

    plain = patches.Augmentation(**SMALL)
    set_attribute(recipes, "NET", OPTIONS)
    set_attribute(recipes, "CROP", {2: (64, 64), 3: (8, 32, 32)})
    set_attribute(recipes, "PAIRS", {2: 1, 3: 1})
    set_attribute(recipes, "AUGMENTATION", {2: plain, 3: plain})
    set_attribute(patches, "DRAWN_SHAPE", {2: (96, 96), 3: (12, 48, 48)})
    set_attribute(tuning, "GRID", {"fg": (0.4, 0.6)})


def draw_table(folder):
    """Write three small drawn images with masks and a table of them; return the table."""
    import numpy as np
    import tifffile

    from iaunet import synthetic

    rng = np.random.default_rng(0)
    rows = ["image,path,reference,group,split"]
    for name, split in (("a", "train"), ("b", "train"), ("c", "validation")):
        image, labels = synthetic.draw_nuclei((96, 96), rng, diameter_px=16)
        tifffile.imwrite(folder / f"{name}.tif", image)
        tifffile.imwrite(folder / f"{name}_mask.tif", labels)
        rows.append(f"{name},{name}.tif,{name}_mask.tif,{name},{split}")
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    return folder / "table.csv"


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1] / "workflow/scripts"))
    import train
    from iaunet import cli

    make_small(setattr)
    cli.run(train.main)
