"""Drawn scattered sticks: crossing, alike, and cut into pieces by one another.

The benchmark of the discriminative loss (De Brabandere et al., arXiv 1708.02551, figure 4). The
paper's generator is not public; the numbers are those of its established reimplementation
(nyoki-mtl/pytorch-discriminative-loss, ``synthetic_scattered_sticks.ipynb``).
"""

import numpy as np

SHAPE = (256, 256)
N_STICKS = 8
WIDTH_PX = 15
LENGTH_PX = (80, 100)
ANGLE_DEGREES = (-90, 90)
CENTRE_PX = (30, 225)
"""Ranges are whole numbers, the upper end is never drawn."""
OUTLINE_PX = 2
LEAST_VISIBLE_PX = 400


def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw white sticks with black outlines on white, later ones over earlier ones.

    Every stick shows at least `LEAST_VISIBLE_PX`, maybe in several pieces, which keep one label.

    Returns
    -------
    image : uint8 array
        0 on outlines, else 255.
    labels : uint32 array
        1 to `N_STICKS` in the order of drawing; 0 is background.
    """
    while True:
        image = np.full(SHAPE, 255, np.uint8)
        labels = np.zeros(SHAPE, np.uint32)
        for label in range(1, N_STICKS + 1):
            distance = _distance(
                rng.integers(*CENTRE_PX, size=2),
                rng.integers(*LENGTH_PX),
                np.deg2rad(rng.integers(*ANGLE_DEGREES)),
            )
            inside = distance <= 0
            labels[inside] = label
            image[inside] = 255
            image[np.abs(distance) <= OUTLINE_PX / 2] = 0
        if np.bincount(labels.ravel(), minlength=N_STICKS + 1)[1:].min() >= LEAST_VISIBLE_PX:
            return image, labels


def _distance(centre: np.ndarray, length_px: int, angle: float) -> np.ndarray:
    """Return how far every pixel is from the edge of a stick, px; negative inside it."""
    y, x = np.indices(SHAPE) - centre[:, None, None]
    along = np.abs(np.cos(angle) * x + np.sin(angle) * y) - length_px / 2
    across = np.abs(np.cos(angle) * y - np.sin(angle) * x) - WIDTH_PX / 2
    outside = np.hypot(np.maximum(along, 0), np.maximum(across, 0))
    return outside + np.minimum(np.maximum(along, across), 0)
