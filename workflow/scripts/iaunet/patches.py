"""Training samples: annotated images, crops in two views, augmentation."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from iaunet import normalize, scale, splitting, synthetic
from iaunet.predict import CLIP

N_SPOTS = 4096
MORPHOLOGY = ("log_size", "axis_ratio", "solidity", "mean_intensity", "std_intensity")
SMALL_SHARE = 0.65
"""How often images of small objects are zoomed up: so inference resamples them, too."""
DRAWN_SHAPE = {2: (512, 512), 3: (48, 144, 144)}
DRAWN = {
    "nuclei": (synthetic.random_options, synthetic.draw_nuclei),
    "cells": (synthetic.random_cell_options, synthetic.draw_cells),
}
"""What can be drawn: the options of one image, and the image."""
INTERPOLATION = {2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True)
class Annotated:
    """An image with its true instances and what training needs to know of them.

    `image` is float16, scaled by the limits of the whole image; `labels` int32 1..m are the
    parts of the instances (an instance that is not split has one), 0 for background and -1 for
    what is not annotated; `of_part` (m + 1,) is the instance of each, 1..n.
    `depth` uint8 is 255 * distance to the instance's outline / its maximum in the part;
    `middle` (m + 1, d) px is the voxel of the part nearest to its centroid, `reach` how far
    it extends from there, `part_size` its voxels. Of instances: `centre` (n + 1, d) px, as
    `middle`; `size` (n + 1,) voxels; `morphology` (n + 1, 5) as in `MORPHOLOGY`; row 0 is
    unused. Instances that lie partly where nothing is annotated are measured whole. `spots`
    (k, d) px are annotated voxels all over the image, none when all are. `pieces` (n + 1,)
    counts the connected parts of an instance. `weight` is the relative probability that a crop
    comes from this image.
    `classes` int16 are those of the voxels, 0 background, -1 not annotated; none: not known.
    A voxel takes 7 bytes, 9 with classes.
    """

    name: str
    group: str
    image: np.ndarray
    labels: np.ndarray
    depth: np.ndarray
    of_part: np.ndarray
    middle: np.ndarray
    reach: np.ndarray
    part_size: np.ndarray
    centre: np.ndarray
    size: np.ndarray
    morphology: np.ndarray
    pieces: np.ndarray
    spots: np.ndarray
    weight: float | None = None
    classes: np.ndarray | None = None

    @property
    def n(self) -> int:
        """How many instances there are."""
        return len(self.size) - 1

    def objects(self) -> np.ndarray:
        """Return the instances 1..n; 0 and -1 as in `labels`."""
        return whole(self.labels, self.of_part)

    def scored(self) -> np.ndarray:
        """Return the instances, -1 also for those whose larger part is not annotated."""
        objects = self.objects()
        if not len(self.spots):
            return objects
        known = np.bincount(objects[objects > 0], minlength=self.n + 1)
        ignored = 2 * known < self.size
        ignored[0] = False
        return np.where(ignored[objects], -1, objects)


def whole(labels: np.ndarray, of_part: np.ndarray) -> np.ndarray:
    """Return the instances of parts; -1 stays."""
    return np.where(labels > 0, of_part[labels], labels)


def prepared(
    name: str,
    group: str,
    image: np.ndarray,
    labels: np.ndarray,
    percentiles: Sequence[float],
    sizes: Mapping[str, Sequence[float]] | None,
    annotated: np.ndarray | None = None,
    of_voxels: np.ndarray | None = None,
    *,
    longest_px: float | None = None,
) -> Annotated:
    """Scale an image by its own limits, as inference does, and measure its instances.

    `sizes`: "smallest" and "largest" median diameters per axis between which an image is not
    resampled; the rest as for `annotate`.
    """
    limits = normalize.limits(image, percentiles)
    scaled = np.empty(image.shape, np.float16)
    for plane, out in zip(image, scaled, strict=True):
        out[...] = normalize.scale(plane, limits.low, limits.high).clip(*CLIP)
    if sizes and labels.any():
        middle = scale.median_diameter(scale.diameters(labels))
        to = scale.grid_shape(
            image.shape, scale.factors(middle, sizes["smallest"], sizes["largest"])
        )
        everywhere = tuple(slice(0, n) for n in to)
        here = np.ix_(*scale.nearest(image.shape, to, everywhere))
        labels, annotated, of_voxels = (
            None if values is None else values[here] for values in (labels, annotated, of_voxels)
        )
        scaled = scale.resampled(lambda box: scaled[box], image.shape, to, everywhere)
    spacing = (1.0,) * image.ndim
    return annotate(
        name, group, scaled, labels, spacing, annotated, of_voxels, longest_px=longest_px
    )


def drawn(
    n: int,
    ndim: int,
    kind: str,
    seed: int,
    percentiles: Sequence[float],
    sizes: Mapping[str, Sequence[float]] | None,
    longest_px: float | None = None,
) -> list[tuple[str, Annotated]]:
    """Draw images, every twentieth without any object; every seventh validates.

    Returns the side of each, "train" or "validation", and the image; `kind` is one of `DRAWN`.
    """
    images = []
    options_of, draw = DRAWN[kind]
    for index in range(n):
        rng = np.random.default_rng([seed, 7, index])
        if index % 20 == 19:
            image = synthetic.draw_background(DRAWN_SHAPE[ndim], rng)
            labels = np.zeros(image.shape, np.uint32)
        else:
            image, labels = draw(DRAWN_SHAPE[ndim], rng, **options_of(rng, ndim))
        side = "validation" if index % 7 == 3 else "train"
        name = f"drawn-{index}"
        found = prepared(name, name, image, labels, percentiles, sizes, longest_px=longest_px)
        images.append((side, found))
    return images


def annotate(
    name: str,
    group: str,
    image: np.ndarray,
    labels: np.ndarray,
    spacing: Sequence[float],
    annotated: np.ndarray | None = None,
    classes: np.ndarray | None = None,
    longest_px: float | None = None,
) -> Annotated:
    """Measure every instance once: normalised distance map, centre, size, morphology.

    Parameters
    ----------
    image : float array
        Scaled by the limits of the whole image.
    labels : int array, same shape
        Any ids; 0 is background. An id in several pieces stays one instance.
    spacing : d floats
        Relative voxel lengths, for distances.
    annotated : bool array, same shape, optional
        Where the labels say what is there; none: everywhere.
    classes : int array, same shape, optional
        0 background, -1 not annotated.
    longest_px : instances whose box is longer along an axis are split, see `splitting`; None: none.
    """
    if annotated is not None:
        labels = np.where(np.isin(labels, np.unique(labels[annotated])), labels, 0)
    compact, n = _compact(labels)
    measured = _measured(image, compact, n, spacing)
    if longest_px is not None:
        compact, of_part = splitting.split(compact, n, longest_px, spacing)
        measured |= _of_parts(compact, of_part, spacing)
    measured["depth"] = _share(compact, measured["depth"])
    spots = np.zeros((0, image.ndim), np.int64)
    if annotated is not None and not annotated.all():
        compact[~annotated] = -1
        known = np.flatnonzero(annotated)
        chosen = known[np.linspace(0, len(known) - 1, min(N_SPOTS, len(known))).astype(int)]
        spots = np.stack(np.unravel_index(chosen, labels.shape), axis=1)
    if classes is not None:
        known = classes if annotated is None else np.where(annotated, classes, -1)
        measured["classes"] = known.astype(np.int16)
    return Annotated(name, group, image.astype(np.float16), labels=compact, spots=spots, **measured)


def _measured(
    image: np.ndarray, labels: np.ndarray, n: int, spacing: Sequence[float]
) -> dict[str, np.ndarray]:
    """Return what `Annotated` knows of the instances 1..n; depths are px, float16."""
    d = image.ndim
    depth = np.zeros(image.shape, np.float16)
    centre = np.zeros((n + 1, d), np.float32)
    size = np.zeros(n + 1, np.float32)
    morphology = np.zeros((n + 1, len(MORPHOLOGY)), np.float32)
    reach = np.zeros((n + 1, d), np.float32)
    pieces = np.zeros(n + 1, np.int32)
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        inside = labels[box] == label
        depth[box][inside] = splitting.depths(inside, spacing)[inside]
        points = np.argwhere(inside)
        centre[label], reach[label] = _middle(points, spacing, box)
        size[label] = len(points)
        pieces[label] = ndimage.label(inside, np.ones((3,) * d))[1]
        morphology[label] = _morphology(points * spacing, image[box][inside].astype(np.float32))
    return {
        "depth": depth,
        "of_part": np.arange(n + 1, dtype=np.int32),
        "middle": centre,
        "reach": reach,
        "part_size": size,
        "centre": centre,
        "size": size,
        "morphology": morphology,
        "pieces": pieces,
    }


def _of_parts(
    parts: np.ndarray, of_part: np.ndarray, spacing: Sequence[float]
) -> dict[str, np.ndarray]:
    """Return what `Annotated` knows of parts."""
    middle = np.zeros((len(of_part), parts.ndim), np.float32)
    reach, size = np.zeros_like(middle), np.zeros(len(of_part), np.float32)
    for label, box in enumerate(ndimage.find_objects(np.maximum(parts, 0)), start=1):
        points = np.argwhere(parts[box] == label)
        middle[label], reach[label] = _middle(points, spacing, box)
        size[label] = len(points)
    return {"of_part": of_part, "middle": middle, "reach": reach, "part_size": size}


def _middle(
    points: np.ndarray, spacing: Sequence[float], box: tuple[slice, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the point nearest to the centroid, in the image, and the largest distances to it."""
    nearest = points[(((points - points.mean(0)) * spacing) ** 2).sum(1).argmin()]
    return nearest + [side.start for side in box], np.abs(points - nearest).max(0)


def _share(labels: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Return 1 to 255 inside objects: depths against the largest of their part."""
    largest = np.zeros(labels.max(initial=0) + 1, np.float32)
    inside = labels > 0
    np.maximum.at(largest, labels[inside], depth[inside].astype(np.float32))
    share = np.zeros(labels.shape, np.uint8)
    ratio = depth[inside].astype(np.float32) / largest[labels[inside]]
    share[inside] = np.maximum(1, np.rint(255 * ratio))
    return share


def _compact(labels: np.ndarray) -> tuple[np.ndarray, int]:
    """Return labels 1..n as int32, in the order of the ids, and n; plane by plane."""
    ids = np.unique(labels)
    ids = ids[ids != 0]
    compact = np.empty(labels.shape, np.int32)
    for plane, out in zip(labels, compact, strict=True):
        out[...] = np.where(plane == 0, 0, np.searchsorted(ids, plane) + 1)
    return compact, len(ids)


def _morphology(points: np.ndarray, values: np.ndarray) -> tuple[float, ...]:
    """Return the features of `MORPHOLOGY` of one instance.

    Solidity is its size over that of the ellipsoid of equal second moments: no hull is needed.
    """
    d = points.shape[1]
    spread = np.cov(points.T, bias=True).reshape(d, d) + np.eye(d) / 12
    axes = np.sqrt(np.linalg.eigvalsh(spread))
    ball = {2: 4 * np.pi, 3: 4 / 3 * np.pi * 5**1.5}[d]
    ratio = axes[0] / axes[-1]
    solidity = len(points) / (ball * axes.prod())
    return np.log(len(points)), ratio, solidity, values.mean(), values.std()


def standardised_morphology(images: Sequence[Annotated]) -> list[np.ndarray]:
    """Return the morphology of every image in units of the data set's standard deviation."""
    rows = [image.morphology[1:] for image in images if image.n]
    everything = np.concatenate(rows) if rows else np.zeros((1, len(MORPHOLOGY)), np.float32)
    mean, std = everything.mean(0), everything.std(0) + 1e-6
    return [((image.morphology - mean) / std).astype(np.float32) for image in images]


@dataclass(frozen=True)
class Augmentation:
    """How far crops are varied; `zoom` is the range of a log-uniform factor per view pair."""

    zoom: tuple[float, float]
    small_px: float  # images whose median diameter is below are mostly zoomed by `zoom_small`
    zoom_small: tuple[float, float]
    anisotropy: float  # 3D: factor by which z may be stretched or squeezed against y, x
    empty: float  # share of crops that show noise and no object


class Sampler:
    """Draws batches; a pair of crops depends on the seed, the step and its number alone.

    Crops come in pairs: two overlapping views of one image with the same geometry up to the
    shift, and independent photometric augmentation.
    """

    def __init__(
        self,
        images: Sequence[Annotated],
        crop_px: Sequence[int],
        n_pairs: int,
        augmentation: Augmentation,
        seed: int,
    ) -> None:
        if not images:
            raise ValueError("no image to draw crops from")
        self.images = list(images)
        self.morphology = standardised_morphology(images)
        self.crop_px = tuple(crop_px)
        self.n_pairs = n_pairs
        self.augmentation = augmentation
        self.seed = seed
        self.weight = probabilities(images)
        self.diameter = [median_diameter(image) for image in images]
        self.has_classes = any(image.classes is not None for image in images)

    def batch(self, step: int, pairs: Sequence[int] | None = None) -> dict[str, torch.Tensor]:
        """Return the batch of a step, or only some of its pairs of crops.

        image (B, 1, ...) float; labels and objects (B, ...) int64, parts of instances and
        instances; depth (B, 1, ...) float 0..1; all -1 where nothing is annotated; centre
        (B, d, ...) float px of the crop, of parts; and per crop k the rows size[k] and
        morphology[k], indexed by object; pair (B,) int64, equal for two views.
        When an image has classes, classes (B, ...) int64, -1 where they are not annotated.
        """
        views: list[dict[str, np.ndarray]] = []
        for pair in range(self.n_pairs) if pairs is None else pairs:
            rng = np.random.default_rng([self.seed, step, pair])
            if rng.random() < self.augmentation.empty:
                views.extend(self._noise(rng) for _ in range(2))
            else:
                views.extend(self._pair(rng))
        stacked = {
            key: torch.from_numpy(np.stack([view[key] for view in views]))
            for key in ("image", "labels", "objects", "depth", "centre", "shift")
        }
        stacked |= {key: stacked[key].long() for key in ("labels", "objects")}
        if self.has_classes:
            stacked["classes"] = torch.from_numpy(np.stack([v["classes"] for v in views])).long()
        stacked["size"] = [torch.from_numpy(view["size"]) for view in views]
        stacked["morphology"] = [torch.from_numpy(view["morphology"]) for view in views]
        stacked["pair"] = torch.arange(len(views)) // 2
        return stacked

    def _noise(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draw what an image without objects looks like once its limits are stretched."""
        d = len(self.crop_px)
        image = rng.normal(0.45, 0.22, self.crop_px).astype(np.float32)
        if rng.random() < 0.5:
            image = ndimage.gaussian_filter(image, rng.uniform(0.3, 1.5))
            image = 0.45 + (image - 0.45) * 0.22 / max(image.std(), 1e-6)
        if rng.random() < 0.5:
            field = ndimage.zoom(
                rng.normal(0, 0.2, (4,) * d), [s / 4 for s in self.crop_px], order=1
            )
            image = image * rng.uniform(0.2, 1) + field
        return {
            "image": np.clip(image, -0.5, 2)[None].astype(np.float32),
            "labels": np.zeros(self.crop_px, np.int32),
            "objects": np.zeros(self.crop_px, np.int32),
            "depth": np.zeros((1, *self.crop_px), np.float32),
            "centre": np.zeros((d, *self.crop_px), np.float32),
            "size": np.ones(1, np.float32),
            "morphology": np.zeros((1, len(MORPHOLOGY)), np.float32),
            "shift": np.zeros(d, np.float32),
            "classes": np.full(self.crop_px, -1, np.int16),
        }

    def _pair(self, rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
        index = rng.choice(len(self.images), p=self.weight)
        image = self.images[index]
        crop = np.array(self.crop_px)
        source = np.maximum(8, np.rint(crop / self._zoom(rng, index))).astype(int)
        room = np.array(image.image.shape) - source
        first, second = _begins(rng, image, source)
        flips = rng.random(len(crop)) < 0.5
        swap = self.crop_px[-1] == self.crop_px[-2] and rng.random() < 0.5
        views = []
        for start in (first, second):
            begin = np.rint(np.where(room > 0, np.clip(start, 0, room), room / 2)).astype(int)
            view = self._view(index, begin, source)
            views.append(_oriented(view, flips, swap))
        for view in views:
            view["image"] = _photometric(view["image"], rng)[None]
        return views

    def _zoom(self, rng: np.random.Generator, index: int) -> np.ndarray:
        low, high = np.log(self.augmentation.zoom)
        zoom = np.exp(rng.uniform(low, high))
        if self.diameter[index] < self.augmentation.small_px and rng.random() < SMALL_SHARE:
            zoom = np.exp(rng.uniform(*np.log(self.augmentation.zoom_small)))
        factors = np.full(len(self.crop_px), zoom)
        if len(factors) == 3:
            stretch = np.log(self.augmentation.anisotropy)
            factors[0] *= np.exp(rng.uniform(-stretch, stretch))
        return factors

    def _view(self, index: int, begin: np.ndarray, source: np.ndarray) -> dict[str, np.ndarray]:
        """Cut a box of the image (zeros outside it) and resample it to the crop's size."""
        of = self.images[index]
        image = _cut(of.image, begin, source).astype(np.float32)
        labels = _cut(of.labels, begin, source)
        depth = _cut(of.depth, begin, source)
        classes = np.full(source, -1, np.int16)
        if of.classes is not None:
            classes = _cut(of.classes, begin, source)
        factors = np.array(self.crop_px) / source
        if tuple(source) != self.crop_px:
            image = _resample(image, self.crop_px, smooth=True)
            depth = _resample(depth.astype(np.float32), self.crop_px, smooth=True)
            labels, classes = (
                _resample(a.astype(np.float32), self.crop_px, smooth=False).astype(a.dtype)
                for a in (labels, classes)
            )
        centre = ((of.middle + 0.5 - begin) * factors - 0.5).astype(np.float32)
        depth = np.where(labels > 0, np.maximum(depth / 255, 1e-3), labels).astype(np.float32)
        return {
            "image": image,
            "labels": labels,
            "objects": whole(labels, of.of_part),
            "depth": depth,
            "centre": np.moveaxis(centre[labels], -1, 0),
            "size": (of.size * factors.prod()).astype(np.float32),
            "morphology": self.morphology[index],
            "shift": (begin * factors).astype(np.float32),
            "classes": classes,
        }


def probabilities(images: Sequence[Annotated]) -> np.ndarray:
    """Return how probable it is that a crop comes from each image.

    In proportion to `weight`, where 1 stands for none. When no image has one: images of a
    group count less the more there are, and images with many instances a little more.
    """
    given = [image.weight for image in images]
    if any(value is not None for value in given):
        weight = np.array([1.0 if value is None else value for value in given])
    else:
        groups = Counter(image.group for image in images)
        weight = np.array([groups[image.group] ** -0.5 for image in images])
        weight *= np.array([max(1, image.n) ** 0.25 for image in images])
    return weight / weight.sum()


def _begins(
    rng: np.random.Generator, image: Annotated, source: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return where two views of `source` px begin, mostly around an instance.

    They may reach over the image. Both hold an annotated voxel.
    """
    middle = None
    if image.n and rng.random() < 0.85:
        middle = image.middle[rng.integers(1, len(image.middle))]
    if len(image.spots) and (middle is None or image.labels[tuple(middle.astype(int))] < 0):
        middle = image.spots[rng.integers(len(image.spots))]
    if middle is None:
        first = rng.uniform(0, 1, len(source)) * (image.image.shape - source)
    else:
        first = middle - source * rng.uniform(0.25, 0.75, len(source))
    second = first + source * rng.uniform(-0.35, 0.35, len(source))
    if len(image.spots):
        second = np.clip(second, middle - source + 1, middle)
    return first, second


def median_diameter(image: Annotated) -> float:
    """Return the diameter of a disc or ball of the parts' median size, px; infinite without."""
    if not image.n:
        return np.inf
    d = image.image.ndim
    size = float(np.median(image.part_size[1:]))
    return 2 * (size / np.pi) ** 0.5 if d == 2 else 2 * (size * 0.75 / np.pi) ** (1 / 3)


def _cut(array: np.ndarray, begin: np.ndarray, size: np.ndarray) -> np.ndarray:
    low = np.maximum(begin, 0)
    high = np.minimum(begin + size, array.shape)
    out = np.zeros(size, array.dtype)
    if (high > low).all():
        to = tuple(slice(a, b) for a, b in zip(low - begin, high - begin, strict=True))
        out[to] = array[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    return out


def _resample(array: np.ndarray, shape: Sequence[int], *, smooth: bool) -> np.ndarray:
    tensor = torch.from_numpy(np.ascontiguousarray(array))[None, None]
    if not smooth:
        return F.interpolate(tensor, tuple(shape), mode="nearest-exact")[0, 0].numpy()
    if array.ndim == 2:
        return F.interpolate(tensor, tuple(shape), mode="bilinear", antialias=True)[0, 0].numpy()
    return F.interpolate(tensor, tuple(shape), mode=INTERPOLATION[array.ndim])[0, 0].numpy()


def _oriented(view: dict[str, np.ndarray], flips: np.ndarray, swap: bool) -> dict[str, np.ndarray]:
    """Flip axes and swap y and x: of the arrays, and of the centres that they hold."""
    names = ("image", "labels", "objects", "depth", "classes")
    maps, centre = [view[name] for name in names], view["centre"]
    shift = view["shift"].copy()
    centre = centre.copy()
    for axis, flip in enumerate(flips):
        if flip:
            maps = [np.flip(a, axis) for a in maps]
            centre = np.flip(centre, axis + 1).copy()
            centre[axis] = centre.shape[axis + 1] - 1 - centre[axis]
            shift[axis] *= -1
    if swap:
        maps = [a.swapaxes(-1, -2) for a in maps]
        order = [*range(len(flips) - 2), len(flips) - 1, len(flips) - 2]
        centre = centre.swapaxes(-1, -2)[order]
        shift = shift[order]
    found = {name: np.ascontiguousarray(a) for name, a in zip(names, maps, strict=True)}
    found["depth"] = found["depth"][None]
    return view | found | {"centre": np.ascontiguousarray(centre), "shift": shift}


def _photometric(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Vary gamma, brightness, contrast, blur and noise; scaled intensities in and out."""
    out = image
    if rng.random() < 0.6:
        gamma = np.exp(rng.uniform(np.log(0.6), np.log(1.6)))
        out = np.sign(out) * np.abs(out) ** gamma
    out = out * np.exp(rng.uniform(np.log(0.65), np.log(1.4))) + rng.uniform(-0.08, 0.08)
    if rng.random() < 0.25:
        sigma = rng.uniform(0.3, 1.4)
        out = ndimage.gaussian_filter(out, [0.5 * sigma] * (out.ndim - 2) + [sigma] * 2)
    if rng.random() < 0.5:
        level = rng.uniform(0, 0.08) + rng.uniform(0, 0.06) * np.sqrt(np.clip(out, 0, 1))
        out = out + rng.standard_normal(out.shape, dtype=np.float32) * level
    return np.clip(out, -0.5, 2).astype(np.float32)
