"""Drawn images whose true labels are known: nuclei in 2D and 3D, cells with stained membranes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

# Fluorescence of a nucleus of mean brightness is 1 in all fields until the photons are drawn.
CAMERA_OFFSET = 100.0
CAMERA_UNITS = 2000.0
READ_NOISE_ELECTRONS = 0.5
LARGEST_BRIGHTNESS_RATIO = 5.0
MIN_VOXELS = 12
MIN_VISIBLE_SHARE = 0.35


@dataclass(frozen=True)
class _Nucleus:
    """An ellipsoid with a wavy outline; lengths in physical units (pixels of spacing 1)."""

    centre: np.ndarray  # (d,)
    to_unit: np.ndarray  # (d, d), maps a physical offset to the unit ball
    reach: float  # no point of the nucleus is farther from its centre
    waves: np.ndarray  # (n, d) unit directions of the waves
    heights: np.ndarray  # (n, 2) amplitudes of the second and third Legendre polynomial
    brightness: float


def random_options(rng: np.random.Generator, ndim: int) -> dict[str, object]:
    """Return options for `draw_nuclei` that vary as microscopes and samples do.

    Sparse and crowded, sharp and hazy, clean and photon-starved; in 3D with sections up to four
    times farther apart than pixels.
    """
    anisotropy = 1.0 if rng.random() < 0.2 else rng.uniform(1.0, 4.0)
    dense = rng.random() < 0.6
    # Thinner than about four sections, an object has no shape left that could be learned.
    smallest = max(9.0, 4 * anisotropy) if ndim == 3 else 9.0
    return {
        "diameter_px": float(np.exp(rng.uniform(math.log(smallest), math.log(34.0)))),
        "spacing": (anisotropy, 1.0, 1.0)[-ndim:] if ndim == 3 else (1.0,) * ndim,
        "coverage": float(rng.uniform(0.2, 0.5) if dense else rng.uniform(0.02, 0.2)),
        "clustered": float(rng.uniform(0.2, 0.9)),
        "size_spread": float(rng.uniform(0.05, 0.25)),
        "elongation": float(rng.uniform(0.05, 0.25)),
        "irregularity": float(rng.uniform(0.0, 0.12)),
        "texture": float(rng.uniform(0.05, 0.5)),
        "brightness_ratio": float(rng.uniform(1.3, LARGEST_BRIGHTNESS_RATIO)),
        "blur_px": float(rng.uniform(0.5, 1.8)),
        "background": float(np.exp(rng.uniform(math.log(0.02), math.log(0.6)))),
        "haze": float(rng.uniform(0.0, 0.8)),
        "photons": float(np.exp(rng.uniform(math.log(4.0), math.log(300.0)))),
    }


def draw_nuclei(
    shape: Sequence[int],
    rng: np.random.Generator,
    *,
    diameter_px: float,
    spacing: Sequence[float] | None = None,
    coverage: float = 0.3,
    clustered: float = 0.5,
    size_spread: float = 0.15,
    elongation: float = 0.15,
    irregularity: float = 0.06,
    texture: float = 0.25,
    brightness_ratio: float = LARGEST_BRIGHTNESS_RATIO,
    blur_px: float = 1.0,
    background: float = 0.1,
    haze: float = 0.3,
    photons: float = 40.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a fluorescence image of nuclei and its true labels.

    Nuclei are drawn in physical units, sampled on the voxel grid, blurred (more in depth) and
    photographed with shot and read noise. Where two touch, a voxel belongs to the one in whose
    unit ball it lies deeper, which gives them a common border without a gap.

    Parameters
    ----------
    shape : two or three ints
        Voxels along (z,) y, x.
    rng : numpy.random.Generator
        The only source of chance.
    diameter_px : float
        Median diameter, in pixels of an axis whose spacing is 1.
    spacing : floats, optional
        Distance of neighbouring voxels along each axis, in the same unit; default 1.
    coverage : float
        Aimed share of the image inside nuclei, 0 to about 0.5; 0 draws an image without any.
    clustered : float
        Share of the nuclei that are placed against another one.
    size_spread, elongation : float
        Standard deviation of the logarithm of the diameter, and of the axes of one nucleus.
    irregularity : float
        Height of the waves of the outline, relative to the radius.
    texture : float
        Strength of the chromatin; above 0 there are darker nucleoli.
    brightness_ratio : float
        Ratio of the brightest to the dimmest nucleus.
    blur_px : float
        Standard deviation of the optical blur across; in depth it is 2.5 times that.
    background, haze : float
        Uneven light everywhere, and light of the nuclei scattered around them, relative to a
        nucleus of mean brightness.
    photons : float
        Photons that a voxel of such a nucleus gives: fewer is noisier.

    Returns
    -------
    image : uint16 array
    labels : uint32 array
        1 to n without gaps; every object is face-connected. 0 is background.
    """
    shape = tuple(int(length) for length in shape)
    step = np.ones(len(shape)) if spacing is None else np.asarray(spacing, dtype=float)
    if len(shape) not in (2, 3) or len(step) != len(shape):
        raise ValueError(f"need two or three axes, got {shape=}, {spacing=}")
    extent = np.asarray(shape) * step
    nuclei = _placed(
        extent,
        rng,
        radius=diameter_px / 2,
        coverage=coverage,
        clustered=clustered,
        size_spread=size_spread,
        elongation=elongation,
        irregularity=irregularity,
        brightness_ratio=brightness_ratio,
    )
    labels = _connected(*_competition(shape, step, nuclei))
    chromatin = _chromatin(shape, step, diameter_px, rng)
    light = _fluorescence(labels, step, nuclei, chromatin, texture, rng)
    labels = _numbered(labels)

    light = _through_lens(light, blur_px / step, 0.5, rng)
    if haze > 0:
        light += haze * _wide_blur(light, 0.8 * diameter_px / step)
    light += background * _uneven(shape, rng)
    return _photograph(light, photons, rng), labels


def random_cell_options(rng: np.random.Generator, ndim: int) -> dict[str, object]:
    """Return options for `draw_cells` that vary as tissues and microscopes do."""
    anisotropy = 1.0 if rng.random() < 0.4 else rng.uniform(1.0, 3.0)
    smallest = max(16.0, 8 * anisotropy) if ndim == 3 else 16.0
    return {
        "diameter_px": float(np.exp(rng.uniform(math.log(smallest), math.log(46.0)))),
        "spacing": (anisotropy, 1.0, 1.0)[-ndim:] if ndim == 3 else (1.0,) * ndim,
        "filled": 1.0 if rng.random() < 0.5 else float(rng.uniform(0.4, 0.8)),
        "size_spread": float(rng.uniform(0.0, 0.6)),
        "bent": float(rng.uniform(0.0, 0.25)),
        "thickness_px": float(rng.uniform(0.6, 2.0)),
        "unevenness": float(rng.uniform(0.1, 0.8)),
        "interior": float(rng.uniform(0.0, 0.45)),
        "blur_px": float(rng.uniform(0.4, 1.4)),
        "background": float(np.exp(rng.uniform(math.log(0.02), math.log(0.4)))),
        "photons": float(np.exp(rng.uniform(math.log(10.0), math.log(300.0)))),
    }


def draw_cells(
    shape: Sequence[int],
    rng: np.random.Generator,
    *,
    diameter_px: float,
    spacing: Sequence[float] | None = None,
    filled: float = 1.0,
    size_spread: float = 0.3,
    bent: float = 0.1,
    thickness_px: float = 1.0,
    unevenness: float = 0.4,
    interior: float = 0.2,
    blur_px: float = 0.8,
    background: float = 0.1,
    photons: float = 40.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a tissue of cells with stained membranes and its true labels.

    Cells are a Voronoi partition of bent space; membranes shine where cells meet one another
    or the outside.

    Parameters
    ----------
    shape, rng, spacing, blur_px, background, photons
        As in `draw_nuclei`; light is relative to a membrane.
    diameter_px : float
        Of a cell of mean size, in pixels of an axis whose spacing is 1.
    filled : float
        Share of the image inside the tissue; 1 has no outside.
    size_spread : float
        Standard deviation of the logarithm of the local size of cells.
    bent : float
        Standard deviation of the shift of outlines, in diameters.
    thickness_px : float
        Half width of a membrane.
    unevenness : float
        Standard deviation of the logarithm of the brightness along membranes.
    interior : float
        Brightness inside cells: plasma, vesicles and the nucleus.

    Returns
    -------
    image : uint16 array
    labels : uint32 array
        1 to n without gaps; every object is face-connected. 0 is outside the tissue.
    """
    shape = tuple(int(length) for length in shape)
    step = np.ones(len(shape)) if spacing is None else np.asarray(spacing, dtype=float)
    if len(shape) not in (2, 3) or len(step) != len(shape):
        raise ValueError(f"need two or three axes, got {shape=}, {spacing=}")
    labels = _partition(shape, step, rng, diameter_px, size_spread, bent)
    if filled < 1:
        hills = _smooth(shape, 1.5 * diameter_px / step, rng)
        labels[hills > np.quantile(hills, filled)] = 0
    labels = _connected(labels, np.zeros(int(labels.max()) + 1))
    labels = _numbered(labels)

    distance = ndimage.distance_transform_edt(~_walls(labels), sampling=step)
    light = np.exp(-((distance / thickness_px) ** 2)).astype(np.float32)
    light *= np.exp(unevenness * _smooth(shape, 0.4 * diameter_px / step, rng))
    plasma = np.exp(0.7 * _smooth(shape, 0.15 * diameter_px / step, rng))
    light += interior * plasma * (labels > 0) * rng.uniform(0.3, 1.0, int(labels.max()) + 1)[labels]
    light = _through_lens(light, blur_px / step, 0.8, rng)
    light += background * _uneven(shape, rng)
    return _photograph(light, photons, rng), labels


def _partition(
    shape: tuple[int, ...],
    step: np.ndarray,
    rng: np.random.Generator,
    diameter_px: float,
    size_spread: float,
    bent: float,
) -> np.ndarray:
    """Return every voxel's nearest seed, 1 to n, in space that is bent at random."""
    extent = np.asarray(shape) * step
    margin = diameter_px
    ball = {2: math.pi / 4, 3: math.pi / 6}[len(shape)] * diameter_px ** len(shape)
    count = max(1, round(float(np.prod(extent + 2 * margin)) / ball))
    crowded = rng.uniform(-margin, extent + margin, (4 * count, len(shape)))
    waves = rng.normal(size=(3, len(shape))) * (1.5 / diameter_px)
    density = np.cos(crowded @ waves.T / 4 + rng.uniform(0, 7, 3)).sum(1) * size_spread
    tree, seeds = cKDTree(crowded), []
    near = 0.72 * diameter_px * np.exp(density / 2)
    free = np.ones(len(crowded), dtype=bool)
    for index in range(len(crowded)):
        if free[index]:
            seeds.append(index)
            free[tree.query_ball_point(crowded[index], near[index])] = False
    grids = np.meshgrid(
        *(np.arange(n) * s for n, s in zip(shape, step, strict=True)), indexing="ij"
    )
    points = np.stack(grids, -1).astype(np.float32)
    for axis in range(len(shape)):
        points[..., axis] += bent * diameter_px * _smooth(shape, 0.35 * diameter_px / step, rng)
    _, owner = cKDTree(crowded[seeds]).query(points.reshape(-1, len(shape)))
    return (owner.reshape(shape) + 1).astype(np.uint32)


def _walls(labels: np.ndarray) -> np.ndarray:
    """Return where a voxel has a neighbour of another label, bool."""
    walls = np.zeros(labels.shape, dtype=bool)
    for axis in range(labels.ndim):
        ahead = [slice(None)] * labels.ndim
        behind = list(ahead)
        ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
        differ = labels[tuple(ahead)] != labels[tuple(behind)]
        walls[tuple(ahead)] |= differ
        walls[tuple(behind)] |= differ
    return walls


def _smooth(shape: tuple[int, ...], sigma: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return smooth noise with mean 0 and standard deviation 1, float32."""
    coarse = np.maximum(1, np.minimum(sigma / 1.5, shape)).astype(int)
    nodes = tuple(-(-n // c) + 2 for n, c in zip(shape, coarse, strict=True))
    noise = rng.standard_normal(nodes, dtype=np.float32)
    noise = ndimage.gaussian_filter(noise, sigma / coarse, truncate=3, mode="wrap")
    field = _stretched(noise, shape)
    return (field - field.mean()) / max(float(field.std()), 1e-6)


def draw_background(
    shape: Sequence[int], rng: np.random.Generator, *, background: float = 0.5, photons: float = 40
) -> np.ndarray:
    """Draw an image without any object: uneven light and noise, uint16."""
    shape = tuple(int(length) for length in shape)
    return _photograph(background * _uneven(shape, rng), photons, rng)


def _placed(
    extent: np.ndarray,
    rng: np.random.Generator,
    *,
    radius: float,
    coverage: float,
    clustered: float,
    size_spread: float,
    elongation: float,
    irregularity: float,
    brightness_ratio: float,
) -> list[_Nucleus]:
    ndim = len(extent)
    unit_ball = math.pi if ndim == 2 else 4 / 3 * math.pi
    margin = 0.8 * radius
    wanted = coverage * float(np.prod(extent + 2 * margin))
    expected = wanted / (unit_ball * radius**ndim)
    nuclei: list[_Nucleus] = []
    centres = np.empty((0, ndim))
    to_units = np.empty((0, ndim, ndim))
    drawn = 0.0
    for _ in range(50 + int(25 * expected)):
        if drawn >= wanted:
            break
        size = radius * math.exp(rng.normal(0, size_spread))
        stretch = rng.normal(0, elongation, ndim)
        axes = size * np.exp(stretch - stretch.mean())
        rotation, _ = np.linalg.qr(rng.normal(size=(ndim, ndim)))
        to_unit = (rotation / axes).T
        if nuclei and rng.random() < clustered:
            parent = int(rng.integers(len(nuclei)))
            direction = rng.normal(size=ndim)
            direction /= np.linalg.norm(direction)
            distance = 1 / np.linalg.norm(to_unit @ direction) + 1 / np.linalg.norm(
                to_units[parent] @ direction
            )
            centre = centres[parent] + direction * distance * rng.uniform(0.8, 1.0)
            if np.any(centre < -margin) or np.any(centre > extent + margin):
                continue
        else:
            centre = rng.uniform(-margin, extent + margin)
        if _too_close(centre, to_unit, centres, to_units, rng.uniform(0.75, 1.0)):
            continue
        heights = rng.normal(0, irregularity / 2, (3, 2)).clip(-0.15, 0.15)
        waves = rng.normal(size=(3, ndim))
        nuclei.append(
            _Nucleus(
                centre=centre,
                to_unit=to_unit,
                reach=float(axes.max() * (1 + np.abs(heights).sum())),
                waves=waves / np.linalg.norm(waves, axis=1, keepdims=True),
                heights=heights,
                brightness=math.exp((rng.random() - 0.5) * math.log(brightness_ratio)),
            )
        )
        centres = np.vstack([centres, centre])
        to_units = np.concatenate([to_units, to_unit[None]])
        drawn += unit_ball * size**ndim
    return nuclei


def _too_close(
    centre: np.ndarray,
    to_unit: np.ndarray,
    centres: np.ndarray,
    to_units: np.ndarray,
    nearness: float,
) -> bool:
    """Return whether an ellipsoid would reach into another one, seen along the line of centres."""
    apart = centres - centre
    distance = np.linalg.norm(apart, axis=1)
    if len(apart) == 0 or distance.min() < 1e-6:
        return len(apart) > 0
    mine = distance / np.linalg.norm(apart @ to_unit.T, axis=1)
    theirs = distance / np.linalg.norm(np.einsum("nij,nj->ni", to_units, apart), axis=1)
    return bool(np.any(distance < nearness * 0.95 * (mine + theirs)))


def _window(
    shape: tuple[int, ...], step: np.ndarray, nucleus: _Nucleus
) -> tuple[tuple[slice, ...], list[np.ndarray]]:
    """Return the box of voxels a nucleus may reach and, per axis, their physical offsets."""
    box = tuple(
        slice(max(0, math.floor(low)), max(0, min(length, math.ceil(high) + 1)))
        for low, high, length in zip(
            (nucleus.centre - nucleus.reach) / step - 0.5,
            (nucleus.centre + nucleus.reach) / step - 0.5,
            shape,
            strict=True,
        )
    )
    offsets = [
        (np.arange(side.start, side.stop) + 0.5) * unit - centre
        for side, unit, centre in zip(box, step, nucleus.centre, strict=True)
    ]
    return box, offsets


def _in_unit_ball(nucleus: _Nucleus, offsets: list[np.ndarray]) -> np.ndarray:
    """Return the positions of a window in the unit ball of the nucleus, (d, *window) float32."""
    grids = np.meshgrid(*(side.astype(np.float32) for side in offsets), indexing="ij")
    return np.tensordot(nucleus.to_unit.astype(np.float32), np.stack(grids), axes=1)


def _depth(nucleus: _Nucleus, position: np.ndarray) -> np.ndarray:
    """Return the distance from the centre, 1 on the wavy outline."""
    distance = np.sqrt((position**2).sum(axis=0))
    near = distance < 1 + np.abs(nucleus.heights).sum()
    direction = position[:, near] / np.maximum(distance[near], 1e-6)
    outline = np.ones(direction.shape[1], dtype=np.float32)
    for wave, (second, third) in zip(nucleus.waves, nucleus.heights, strict=True):
        cosine = wave.astype(np.float32) @ direction
        outline += second * (1.5 * cosine**2 - 0.5) + third * (2.5 * cosine**3 - 1.5 * cosine)
    distance[near] /= np.maximum(outline, 0.5)
    return distance


def _competition(
    shape: tuple[int, ...], step: np.ndarray, nuclei: list[_Nucleus]
) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and how many voxels each nucleus would have if it were alone."""
    labels = np.zeros(shape, dtype=np.uint32)
    best = np.ones(shape, dtype=np.float32)
    alone = np.zeros(len(nuclei) + 1, dtype=np.int64)
    for label, nucleus in enumerate(nuclei, start=1):
        box, offsets = _window(shape, step, nucleus)
        depth = _depth(nucleus, _in_unit_ball(nucleus, offsets))
        won = depth < best[box]
        alone[label] = np.count_nonzero(depth < 1)
        labels[box][won] = label
        best[box][won] = depth[won]
    return labels, alone


def _connected(labels: np.ndarray, alone: np.ndarray) -> np.ndarray:
    """Return labels with the largest part of each object, without buried and tiny objects."""
    kept = np.zeros_like(labels)
    for label, box in enumerate(ndimage.find_objects(labels.astype(np.int32)), start=1):
        if box is None:
            continue
        parts, count = ndimage.label(labels[box] == label)
        sizes = np.bincount(parts.ravel())
        largest = 1 + int(np.argmax(sizes[1:])) if count else 0
        if sizes[largest] >= max(MIN_VOXELS, MIN_VISIBLE_SHARE * alone[label]):
            kept[box][parts == largest] = label
    return kept


def _numbered(labels: np.ndarray) -> np.ndarray:
    """Return labels 1 to n without gaps, in the same order, uint32."""
    kept = np.unique(labels)
    return np.searchsorted(kept[kept > 0], labels, side="right").astype(np.uint32)


def _through_lens(
    light: np.ndarray, blur: np.ndarray, dimming: float, rng: np.random.Generator
) -> np.ndarray:
    """Return light blurred, in a volume 2.5 times as much in depth and dimmer the deeper it is."""
    if light.ndim == 3:
        blur = blur * (2.5, 1.0, 1.0)
        depth = np.linspace(0, 1, len(light))
        dimmer = np.exp(-rng.uniform(0, dimming) * depth)[:, None, None]
        light = (light * dimmer).astype(light.dtype)
    return ndimage.gaussian_filter(light, blur, truncate=3)


def _chromatin(
    shape: tuple[int, ...], step: np.ndarray, diameter_px: float, rng: np.random.Generator
) -> np.ndarray:
    """Return smooth noise on two scales with mean 0 and standard deviation 1, float32."""
    total = np.zeros(shape, dtype=np.float32)
    for scale in (0.035, 0.12):
        noise = rng.standard_normal(shape, dtype=np.float32)
        noise = ndimage.gaussian_filter(noise, scale * diameter_px / step, truncate=3)
        total += noise / max(float(noise.std()), 1e-6)
    return total / math.sqrt(2)


def _fluorescence(
    labels: np.ndarray,
    step: np.ndarray,
    nuclei: list[_Nucleus],
    chromatin: np.ndarray,
    texture: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return the light of the nuclei before the microscope, float32."""
    light = np.zeros(labels.shape, dtype=np.float32)
    for label, nucleus in enumerate(nuclei, start=1):
        n_nucleoli = int(rng.integers(0, 5))
        spots = rng.normal(size=(n_nucleoli, len(step)))
        spots *= (rng.uniform(0, 0.65, n_nucleoli) / np.linalg.norm(spots, axis=1))[:, None]
        radii = rng.uniform(0.12, 0.32, n_nucleoli)
        box, offsets = _window(labels.shape, step, nucleus)
        inside = labels[box] == label
        if not inside.any():
            continue
        position = _in_unit_ball(nucleus, offsets)[:, inside]
        value = nucleus.brightness * np.exp(texture * chromatin[box][inside])
        for spot, radius in zip(spots, radii, strict=True):
            squared = ((position - spot[:, None].astype(np.float32)) ** 2).sum(axis=0)
            value *= 1 - min(1.0, 2 * texture) * 0.8 * np.exp(-squared / radius**2)
        light[box][inside] = value
    return light


def _wide_blur(light: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Return a wide Gaussian blur, computed on a coarse grid."""
    coarse = tuple(
        max(1, min(int(width), length // 2))
        for width, length in zip(sigma / 1.5, light.shape, strict=True)
    )
    padded = [(0, -length % block) for length, block in zip(light.shape, coarse, strict=True)]
    blocks = np.pad(light, padded, mode="edge")
    for axis, block in enumerate(coarse):
        split = (*blocks.shape[:axis], -1, block, *blocks.shape[axis + 1 :])
        blocks = blocks.reshape(split).mean(axis=axis + 1)
    return _stretched(ndimage.gaussian_filter(blocks, sigma / coarse, truncate=3), light.shape)


def _uneven(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return a very smooth positive field with mean about 1."""
    nodes = np.exp(0.4 * rng.standard_normal((4,) * len(shape)))
    return _stretched(nodes, shape)


def _stretched(coarse: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return a coarse field on a grid of another shape by linear interpolation, float32."""
    field = coarse.astype(np.float32)
    for axis, length in enumerate(shape):
        nodes = field.shape[axis]
        at = np.clip((np.arange(length) + 0.5) * nodes / length - 0.5, 0, nodes - 1)
        low = np.minimum(at.astype(int), max(0, nodes - 2))
        weight = (at - low).astype(np.float32).reshape(-1, *(1,) * (len(shape) - axis - 1))
        high = np.minimum(low + 1, nodes - 1)
        field = field.take(low, axis=axis) * (1 - weight) + field.take(high, axis=axis) * weight
    return field


def _photograph(light: np.ndarray, photons: float, rng: np.random.Generator) -> np.ndarray:
    """Return the image of a camera: shot noise, read noise, offset; uint16."""
    gain = CAMERA_UNITS / photons
    read = gain * READ_NOISE_ELECTRONS
    values = gain * rng.poisson(light * photons).astype(np.float32)
    values += read * rng.standard_normal(light.shape, dtype=np.float32)
    # The offset keeps the read noise of dark voxels from being cut at 0.
    return np.clip(np.rint(CAMERA_OFFSET + 5 * read + values), 0, 65535).astype(np.uint16)
