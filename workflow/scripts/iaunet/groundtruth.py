"""What may be wrong with the masks of a training, found before it starts."""

import hashlib
import logging
from collections.abc import Sequence

from iaunet.errors import InputError
from iaunet.patches import Annotated

log = logging.getLogger("iaunet")

TINY = 4
KINDS = {
    "fragmented": "instances are in several pieces: one number per object is needed, and a "
    "binary mask has to be labelled first",
    "tiny": f"instances have fewer than {TINY} voxels: are they specks?",
    "empty": "images have no instance: right only if nothing is there",
    "constant": "images have one value everywhere",
    "duplicate": "images have the pixels of an earlier one",
}
"""What is looked for, as the log says it."""


def check(train: Sequence[Annotated], validation: Sequence[Annotated]) -> list[dict]:
    """Return what looks wrong, as rows (what, image, count), and log a line per kind.

    Raises
    ------
    InputError
        An image is on both sides, so that scores would be of what was learned.
    """
    found = []
    seen: dict[str, tuple[str, str]] = {}
    for side, data in (("train", train), ("validation", validation)):
        for image in data:
            pixels = hashlib.sha256(image.image).hexdigest()
            constant = image.image.size > 0 and bool((image.image == image.image.flat[0]).all())
            counts = {
                "fragmented": int((image.pieces[1:] > 1).sum()),
                "tiny": int((image.size[1:] < TINY).sum()),
                "empty": int(image.n == 0),
                "constant": int(constant),
                "duplicate": int(pixels in seen and not constant),
            }
            _refuse_leak(image.name, side, seen.get(pixels), constant=constant)
            seen.setdefault(pixels, (image.name, side))
            found += [
                {"what": what, "image": image.name, "count": n} for what, n in counts.items() if n
            ]
    _log(found)
    if len(train) == 1:
        log.warning("one image to fit: the model will know images like it, and little else")
    return found


def _refuse_leak(name: str, side: str, first: tuple[str, str] | None, *, constant: bool) -> None:
    if first is not None and first[1] != side and not constant:
        raise InputError(
            f"image '{name}' ({side}) has the pixels of '{first[0]}' ({first[1]}): scores would "
            "be of what was learned; remove one, or give both the same split or group"
        )


def _log(found: Sequence[dict]) -> None:
    for what, text in KINDS.items():
        rows = [row for row in found if row["what"] == what]
        if rows:
            worst = max(rows, key=lambda row: row["count"])
            total = sum(row["count"] for row in rows)
            log.warning(
                "ground truth: %d %s (images: %d, most in %s)",
                total,
                text,
                len(rows),
                worst["image"],
            )
