"""Point clouds of a direction: domains, streams, augmentation. The data sets themselves are in datasets/.

    way = direction("M_SC")                                 # from M to SC
    src = load_domain("data", way.source)                   # train, test (n, P, 3) and their labels
    tgt = load_domain("data", way.target, labels=False)     # what a training loop sees of the target

A domain is one tensor (n, P, 3), z up, each cloud in the unit sphere (bodies: as in their files); every augmentation is
a batched tensor operation with a generator of its own. Nothing here reads a target label unless it is asked to.
"""

import hashlib
import math
from dataclasses import dataclass, replace
from functools import lru_cache
from types import ModuleType

import torch
import torch.nn.functional as F

from datasets import files, graspnet, own, pointda, pointsegda
from datasets.files import normalise, turn_up
from engine.base import UserError, generator
from engine.geometry import distort, gather_points, grid_of

SOURCES = (pointda, pointsegda, graspnet, own)  # a further data set is one file in datasets/ and its entry here


# ---------------------------------------------------------------- directions and domains
@dataclass(frozen=True)
class Direction:
    """From a source to a target domain of one data set (a module of datasets/); both are keys such as "M", "seg_F"."""

    name: str
    source: str
    target: str
    dataset: ModuleType

    per_point = property(lambda self: self.dataset.PER_POINT)  # labels belong to points: segmentation
    oracle = property(lambda self: self.source == self.target)  # supervised on the target: a bound, no adaptation
    # the half-space crop of strong_view: synthetic source, depth scans as target
    crop = property(lambda self: self.source not in self.dataset.SCANS and self.target in self.dataset.SCANS)


def directions():
    """{name: Direction} of every data set, oracles included: "M_SC" is from M to SC, "seg_F_A" from seg_F to seg_A."""
    triples = [(a, b, dataset) for dataset in SOURCES for a in dataset.DOMAINS for b in dataset.DOMAINS]
    ways = [Direction(f"{a}_{b.removeprefix(dataset.PREFIX)}", a, b, dataset) for a, b, dataset in triples]
    return {way.name: way for way in ways}


def direction(task):
    """The Direction of that name; UserError names the choices."""
    ways = directions()
    if task not in ways:
        known = " ".join(name for name, way in ways.items() if not way.oracle and way.dataset is not own)
        raise UserError(f"--task {task}: unknown; choose one of {known}, or an oracle: S_S and the like")
    return ways[task]


@dataclass
class Domain:
    """Train, test (and val, if the data set has one), (n, P, 3); labels (n,), of points (n, P), None if unopened."""

    key: str
    classes: tuple
    per_point: bool
    train: torch.Tensor
    test: torch.Tensor
    train_labels: torch.Tensor | None = None
    test_labels: torch.Tensor | None = None
    val: torch.Tensor | None = None
    val_labels: torch.Tensor | None = None

    splits = property(lambda self: ("train", "test") if self.val is None else ("train", "val", "test"))

    def to(self, device):
        return replace(self, **{k: v.to(device) for k, v in vars(self).items() if isinstance(v, torch.Tensor)})

    def framed(self, up="z", unit_sphere=False):
        """With z up where y or x was, and in the unit sphere if asked: files of bodies and own clouds tell neither."""
        if up == "z" and not unit_sphere:
            return self
        turn = lambda x: torch.from_numpy(turn_up(x.numpy(), up))
        fit = lambda x: normalise(turn(x)) if unit_sphere else turn(x)
        return replace(self, **{split: fit(getattr(self, split)) for split in self.splits})

    @property
    def validation(self):
        """Points and labels that a source is validated on: its val split, if it has one, else its test split."""
        return (self.test, self.test_labels) if self.val is None else (self.val, self.val_labels)

    @property
    def counts(self):
        """Clouds of each split: the total and, where labels of clouds were opened, of each class."""
        of = lambda split: (getattr(self, split), getattr(self, f"{split}_labels"), len(self.classes))
        return {split: files.counted(*of(split)) for split in self.splits}

    def __str__(self):
        return files.counts_text(dataset_of(self.key).DOMAINS[self.key], self.counts)


def dataset_of(key):
    """The module of datasets/ that a domain belongs to."""
    return next(dataset for dataset in SOURCES if key in dataset.DOMAINS)


def load_domain(root, key, labels=True):
    """A Domain from `root`, as --data has it; labels=False reads no label. UserError names a bad file."""
    dataset, fields = dataset_of(key), {}
    for split in dataset.SPLITS:
        points, y = dataset.load(root, key, split, labels)
        y = torch.from_numpy(y) if labels and y is not None else None  # given unasked, they stay outside
        fields |= {split: torch.from_numpy(points), f"{split}_labels": y}
    domain = Domain(key, dataset.classes(root), dataset.PER_POINT, **fields)
    if labels:
        dataset.check(root, key, domain.counts)
    return domain


def framed(src, tgt, flags):
    """Both domains with z up, by the flags of a run."""
    up = flags["up"], flags.get("target_up") or flags["up"]
    return [domain.framed(axis, flags["unit_sphere"]) for domain, axis in zip((src, tgt), up)]


def data_name(root, src, tgt):
    """ "PointDA-10" only when every count that was opened is official; "built-in shapes"; else "custom: ..." """
    dataset = dataset_of(src.key)
    return files.set_name(root, dataset.NAME, all(dataset.official(d.key, d.counts) for d in (src, tgt)))


def fingerprint(src, tgt):
    """sha256 of all points of both domains in fixed order; labels play no part."""
    digest = hashlib.sha256()
    for points in (getattr(domain, split) for domain in (src, tgt) for split in domain.splits):
        digest.update(points.cpu().numpy().tobytes())
    return digest.hexdigest()


# ---------------------------------------------------------------- streams and fixed subsets
@lru_cache(maxsize=8)
def _permutation(n, *words):
    return torch.randperm(n, generator=generator("cpu", *words))


def stream(n, batch, step, *words):
    """Indices (batch,) of step 0, 1, ... of an endless stream of permutations of n, full batches only.

    A pure function of the step, so that resuming needs no state; a batch larger than n goes on into the next ones.
    """
    per_epoch = n // batch
    if per_epoch:
        at = step % per_epoch * batch
        return _permutation(n, *words, step // per_epoch)[at : at + batch]
    rounds = math.ceil(batch / n)
    return torch.cat([_permutation(n, *words, step * rounds + i) for i in range(rounds)])[:batch]


def subsample_index(points, n, generator):
    """A fresh random n of the N points of each cloud, without replacement unless N < n, (B, N, 3) -> (B, n)."""
    B, N, _ = points.shape
    if N < n:
        return torch.randint(N, (B, n), generator=generator, device=generator.device)
    return torch.rand(B, N, generator=generator, device=generator.device).topk(n, sorted=False).indices


def subsample(points, n, generator):
    """(B, N, 3) -> (B, n, 3): see subsample_index."""
    return gather_points(points, subsample_index(points, n, generator))


def evaluation_subset(points, n, labels=None):
    """The same n points of each cloud in every run and on every device, (m, P, 3) -> (m, n, 3); labels (m, P) alike."""
    index = subsample_index(points, n, generator("cpu", "evaluation", n))
    index = index.sort(1).values.to(points.device)  # topk's own order is nobody's promise
    if labels is None:
        return gather_points(points, index)
    return gather_points(points, index), gather_points(labels, index) if labels.ndim == 2 else labels


# ---------------------------------------------------------------- augmentation, (B, N, 3) -> (B, N, 3)
def _uniform(points, low, high, generator, *shape):
    return low + (high - low) * torch.rand(len(points), *shape, generator=generator, device=points.device)


def rotate_z(points, generator):
    """Each cloud by its own angle in [0, 2 pi) about the vertical."""
    a = _uniform(points, 0, 2 * math.pi, generator)
    c, s, zero, one = a.cos(), a.sin(), torch.zeros_like(a), torch.ones_like(a)
    R = torch.stack([c, -s, zero, s, c, zero, zero, zero, one], -1).view(-1, 3, 3)  # (B, 3, 3)
    return points @ R.transpose(1, 2)


def scale(points, generator, low=0.7, high=1.5):
    """Each cloud by its own factor."""
    return points * _uniform(points, low, high, generator, 1, 1)


def jitter(points, generator, sigma=0.01, clip=0.05):
    """Clipped Gaussian noise on every coordinate."""
    noise = torch.randn(points.shape, generator=generator, device=points.device)
    return points + (sigma * noise).clamp(-clip, clip)


def elastic(points, generator, p=0.95):
    """Elastic distortion by smoothed noise grids: granularity .2, magnitude .4, then .8 and 1.6; for a share p."""
    chosen = (torch.rand(len(points), 1, 1, generator=generator, device=points.device) < p).to(points.dtype)
    for granularity, magnitude, D in ((0.2, 0.4, 13), (0.8, 1.6, 6)):  # D nodes an axis hold a unit sphere, and more
        noise = torch.randn(len(points), 3, D, D, D, generator=generator, device=points.device)
        points = points + chosen * magnitude * distort(points, noise, granularity, grid_of(points, granularity))
    return points


def half_space_crop(points, generator, keep=0.7):
    """The round(.7 N) points furthest along a random direction, (B, N, 3) -> (B, .7 N, 3)."""
    direction = F.normalize(torch.randn(len(points), 3, 1, generator=generator, device=points.device), dim=1)
    kept = (points @ direction)[..., 0].topk(round(keep * points.shape[1]), sorted=False).indices
    return gather_points(points, kept)


def strong_view(points, n, generator, *, source, crop=False):
    """Self-distillation's strong view, (B, P, 3) -> (B, n, 3); the source turns too, cropped for real targets."""
    if source:
        points = rotate_z(points, generator)
    points = jitter(scale(elastic(points, generator), generator), generator)
    if source and crop:
        points = half_space_crop(points, generator)
    return subsample(points, n, generator)


def weak_view(points, n, generator):
    """Self-distillation's weak view for the teacher: jitter alone."""
    return subsample(jitter(points, generator), n, generator)


def plain_view(points, n, generator):
    """The view of DefRec, GAST and MLSP: turn about z and jitter."""
    return subsample(jitter(rotate_z(points, generator), generator, clip=0.02), n, generator)


def plain_view_labelled(points, labels, n, generator):
    """plain_view with per-point labels (B, P) -> (B, n, 3), (B, n)."""
    points = jitter(rotate_z(points, generator), generator, clip=0.02)
    index = subsample_index(points, n, generator)
    return gather_points(points, index), gather_points(labels, index)
