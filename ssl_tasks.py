"""The self-supervised tasks that SM-DSB plugs into (Sec. IV-A of the paper), each one class with one interface.

    task.views(points, labels, source, generator) -> View      the augmented batch of one domain
    task.labelled(view, generator) -> x, mixture                    what is classified: the view, or PCM's mixed clouds
    task(model, view, features, generator) -> (B,)                  per-sample loss, so that samples can be masked
    task.weight(t / T), task.cls_weight                             the weights of L_ssl and L_c
    task.reuses, pooled, teacher, bodies                            see Task, which has a default for everything

A further task is one more such class and a line in TASKS (docs/extend.md). Everything is batched: no loop over clouds.
"""

import copy
import importlib
import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

import data
from engine.geometry import VOXELS, choose_voxel, farthest_points, gather_points, masked_chamfer, normals
from engine.geometry import quarter_turns, share, voxel
from models import GLOBAL, PerPointHead, PointNet


@dataclass
class View:
    """An augmented batch of one domain: x (B, n, 3) feeds the student; y labels or None; weak (B, n, 3) the teacher."""

    x: torch.Tensor
    y: torch.Tensor | None = None
    weak: torch.Tensor | None = None


def cat(views):
    """One View from several (stage 2 joins source and pseudo-labelled target)."""
    join = lambda name: None if getattr(views[0], name) is None else torch.cat([getattr(v, name) for v in views])
    return View(**{name: join(name) for name in View.__dataclass_fields__})


def combine(loss_s, lam_s, loss_t, lam_t, pooled):
    """Eq. (6) as its base weighs it: the loss is masked, never the batch (B,), (B,) bool, (B,), (B,) bool -> scalar.

    pooled divides by B_s + B_t (self-distillation), otherwise each domain by its own B; kept or not, B stays.
    """
    masked_s, masked_t = loss_s.where(lam_s, 0).sum(), loss_t.where(lam_t, 0).sum()
    if pooled:
        return (masked_s + masked_t) / (len(loss_s) + len(loss_t))
    return masked_s / len(loss_s) + masked_t / len(loss_t)  # Eq. (6)


class Task(nn.Module):
    """Defaults: rotate about z and jitter both domains, no teacher, a forward pass of the task's own."""

    # reuses the labelled pass's features; one pooled denominator for both domains, see combine; made for bodies, too
    cls_weight, teacher, reuses, pooled, bodies = 1.0, None, False, False, False

    def __init__(self, n, direction):
        super().__init__()
        self.n, self.per_point = n, direction.per_point

    def weight(self, progress):
        return 1.0

    def views(self, points, labels, source, generator):
        if labels is not None and labels.ndim == 2:  # per-point labels go where their points go
            return View(*data.plain_view_labelled(points, labels, self.n, generator))
        return View(data.plain_view(points, self.n, generator), labels)

    def labelled(self, view, generator):
        """Clouds to classify (B, n, 3), and their labels: [(share, labels, index of whose they are), ...]."""
        return view.x, [(1.0, view.y, slice(None))]

    def encode(self, model, points):
        """The encoder's features of a pass of the task's own; as in the bases' code the classifier sees it, too."""
        features = model.encoder(points)
        if self.training and not self.per_point:
            with torch.no_grad():
                model.predict(features)  # moves the running statistics of its batch norm, nothing else
        return features

    def after_step(self, model, t):
        """Called when the optimiser has taken step t."""


# ---------------------------------------------------------------- none, self-distillation (Cardace et al., WACV 2023)
class NoTask(Task):
    """No adaptation: the labelled loss alone; classes in self-distillation's view, so that only L_ssl differs."""

    bodies = True

    def __init__(self, model, n, direction):
        super().__init__(n, direction)
        self.crop = direction.crop

    def views(self, points, labels, source, generator):
        if self.per_point:
            return super().views(points, labels, source, generator)
        return View(data.strong_view(points, self.n, generator, source=source, crop=self.crop), labels)

    def forward(self, model, view, features, generator):
        return view.x.new_zeros(len(view.x))


class EMA:
    """The teacher: moving average of a student's weights and float buffers, always in eval mode."""

    def __init__(self, student):
        self.model = copy.deepcopy(student).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, student, t):
        """Move towards the student of step t = 0, 1, ...; a small decay at first forgets the random start."""
        decay = min(0.999, 1 - 1 / (t + 1))
        for mine, theirs in zip(self.model.state_dict().values(), student.state_dict().values()):
            if mine.is_floating_point():
                mine.lerp_(theirs, 1 - decay)
            else:
                mine.copy_(theirs)  # the step count of a batch norm


class SelfDistillation(NoTask):
    """The student's feature of a strong view predicts the EMA teacher's feature of a weak one; no head."""

    reuses, pooled, bodies = True, True, False

    def __init__(self, model, n, direction):
        super().__init__(model, n, direction)
        self.teacher = EMA(model)

    def weight(self, progress):
        return math.exp(-5 * (1 - progress) ** 2)

    def views(self, points, labels, source, generator):
        weak = data.weak_view(points, self.n, generator)
        return replace(super().views(points, labels, source, generator), weak=weak)

    def forward(self, model, view, features, generator):
        with torch.no_grad():
            teacher = self.teacher.model.encoder(view.weak)[1]  # (B, 1024)
        student = (features or self.encode(model, view.x))[1]  # (B, 1024)
        return -((teacher / 0.1).softmax(-1) * (student / 0.5).log_softmax(-1)).sum(-1)

    def after_step(self, model, t):
        self.teacher.update(model, t)


# ---------------------------------------------------------------- DefRec and PCM (Achituve et al., WACV 2021)
class DeformationReconstruction(Task):
    """One voxel (of bodies, a ball) collapses to a Gaussian blob; the per-point head puts the points back."""

    bodies = True

    def __init__(self, model, n, direction):
        super().__init__(n, direction)
        self.share = 0.05 if direction.per_point else 0.5
        self.cls_weight = 1 - self.share
        self.head = PerPointHead(model.encoder.point_dim, 3)

    def weight(self, progress):
        return self.share

    def forward(self, model, view, features, generator):
        deformed, hole = deform_ball(view.x, generator) if self.per_point else deform(view.x, generator)[:2]
        return 20 * masked_chamfer(self.head(*self.encode(model, deformed)), view.x, hole)


def deform(points, generator, least=40):
    """Replace one voxel's points by N(its centre, .001 I).

    (B, N, 3) -> deformed (B, N, 3), hole (B, N) bool where points were replaced, the voxel (B,) in 0..26.
    """
    index = voxel(points)
    chosen = choose_voxel(index, least, generator)  # (B,)
    centre = (torch.stack([chosen // 9, chosen // 3 % 3, chosen % 3], -1) - 1) * (2 / 3)  # (B, 3)
    noise = torch.randn(points.shape, generator=generator, device=points.device) * math.sqrt(0.001)
    hole = index == chosen[:, None]
    return torch.where(hole[..., None], centre[:, None] + noise, points), hole, chosen


def deform_ball(points, generator, radius=0.5, least=20, tries=8):
    """Replace the points in a ball about a random one of them by N(that point, .001 I), (B, N, 3) -> (B, N, 3), (B, N).

    The point is the first of `tries` random ones with at least `least` points in its ball, else the fullest of them.
    """
    draw = torch.randint(points.shape[1], (len(points), tries), generator=generator, device=points.device)
    centre = gather_points(points, draw)  # (B, tries, 3)
    near = torch.cdist(centre, points) <= radius  # (B, tries, N)
    count = near.sum(-1)
    chosen = torch.where(count >= least, points.shape[1] + 1, count).argmax(1)  # (B,) the first of the largest
    rows = torch.arange(len(points), device=points.device)
    hole, centre = near[rows, chosen], centre[rows, chosen]
    noise = torch.randn(points.shape, generator=generator, device=points.device) * math.sqrt(0.001)
    return torch.where(hole[..., None], centre[:, None] + noise, points), hole


def pcm(points, generator):
    """Point-cloud mixup: each cloud gives a share mu of its points, another of the batch the rest, both by FPS.

    Returns mixed (B, N, 3), each cloud's partner (B,) as an index, mu ~ Beta(1, 1), one a batch, and the index (B, N)
    of the points taken, of the cloud itself and then of its partner.
    """
    B, N, _ = points.shape
    mu = share(generator)
    partner = torch.randperm(B, generator=generator, device=points.device)
    n = round(mu * N)
    picked = farthest_points(points, max(n, N - n))  # any prefix of FPS is FPS
    taken = torch.cat([picked[:, :n], picked[partner, : N - n]], 1)
    mixed = torch.cat([gather_points(points, taken[:, :n]), gather_points(points[partner], taken[:, n:])], 1)
    return mixed, partner, mu, taken


def mixup(view, generator):
    """What is classified under `+pcm`: mixed clouds with their own labels and their partners', by the share mu.

    Labels of points go with their points; the others' are -100, which cross-entropy leaves out.
    """
    x, partner, mu, taken = pcm(view.x, generator)
    if view.y.ndim == 1:
        return x, [(mu, view.y, slice(None)), (1 - mu, view.y[partner], partner)]
    own = torch.arange(x.shape[1], device=x.device) < round(mu * x.shape[1])  # (N,)
    mine, theirs = view.y.gather(1, taken), view.y[partner].gather(1, taken)  # (B, N)
    return x, [(1.0, mine.where(own, -100), slice(None)), (1.0, theirs.where(~own, -100), partner)]


# ---------------------------------------------------------------- GAST (Zou et al., ICCV 2021)
class GeometryAwareSelfTraining(Task):
    """By how many quarter turns two parts of the cloud were rotated, and which of its 27 regions was distorted."""

    cls_weight = 0.5

    def __init__(self, model, n, direction):
        super().__init__(n, direction)
        self.turns_x, self.turns_y = nn.Linear(GLOBAL, 4), nn.Linear(GLOBAL, 4)
        if isinstance(model.encoder, PointNet):
            self.region = nn.Sequential(nn.Linear(GLOBAL, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, VOXELS))
        else:
            self.region = nn.Linear(GLOBAL, VOXELS)

    def forward(self, model, view, features, generator):
        ce = lambda logits, label: F.cross_entropy(logits, label, reduction="none")
        turned, k_x, k_y, mu = turn_parts(view.x, generator, view.y is None)
        f = self.encode(model, turned)[1]  # (B, 1024)
        rotation = mu * ce(self.turns_x(f), k_x) + (1 - mu) * ce(self.turns_y(f), k_y)  # each head its own label
        distorted, _, chosen = deform(view.x, generator, least=20)
        location = ce(self.region(self.encode(model, distorted)[1]), chosen)
        return 0.2 * rotation + 0.5 * location  # weight() is 1


def turn_parts(points, generator, domain=None):
    """Two farthest-point samples of each cloud, round(mu N) points turned about x, the others about y, together N.

    Returns turned (B, N, 3), quarter turns about x (B,) and y (B,), and mu ~ Beta(1, 1), one a batch.
    """
    B, N, _ = points.shape
    mu = share(generator, domain)
    k_x, k_y = torch.randint(4, (2, B), generator=generator, device=points.device)
    n = round(mu * N)
    picked = gather_points(points, farthest_points(points, max(n, N - n)))  # any prefix of FPS is FPS
    parts = quarter_turns(picked[:, :n], k_x, 0), quarter_turns(picked[:, : N - n], k_y, 1)
    return torch.cat(parts, 1), k_x, k_y, mu


# ---------------------------------------------------------------- MLSP (Liang et al., ECCV 2022)
class MaskedLocalStructure(Task):
    """DefRec's hole, and three heads for its local structure: positions, normals, and how many neighbours there are."""

    bodies = True

    def __init__(self, model, n, direction):
        super().__init__(n, direction)
        self.shares = (0.02, 0.02, 0.02) if direction.per_point else (0.5, 0.5, 0.05)
        self.k, self.per_bin, self.spare = (10, 5, 10) if direction.per_point else (20, 2, 0)  # its authors' scripts
        self.radius, self.hole_weight = RADIUS.get(direction.target, 0.13), 2 if direction.per_point else 27
        self.cls_weight = 1 - self.shares[0]
        self.position, self.normal = PerPointHead(model.encoder.point_dim, 3), PerPointHead(model.encoder.point_dim, 3)
        self.count = PerPointHead(model.encoder.point_dim, BINS, (512, 256, 256), dropped=3)

    def forward(self, model, view, features, generator):
        deformed, hole, _ = deform(view.x, generator)
        features = self.encode(model, deformed)
        position = 20 * masked_chamfer(self.position(*features), view.x, hole)
        cos = (F.normalize(self.normal(*features), dim=-1) * normals(view.x, self.k)).sum(-1)  # (B, N)
        target, neighbours = cardinality(view.x, self.radius, self.per_bin, self.spare)
        log_p = self.count(*features).log_softmax(-1)  # (B, N, BINS)
        expected = self.per_bin * (log_p.exp() * torch.arange(BINS, device=log_p.device)).sum(-1)
        count = -(target * log_p).sum(-1) + 0.05 * (expected - neighbours).abs()
        w = 1 + (self.hole_weight - 1) * hole  # a point in the hole counts more
        inside = lambda loss: (loss * w).sum(1) / w.sum(1)
        parts = position, inside(1 - cos.abs()), inside(count)
        return sum(share * part for share, part in zip(self.shares, parts))  # weight() is 1


BINS = 16  # of the number of neighbours
# in which they are counted, by the target: unit spheres of 1024 points, bodies of 2048, as its authors' scripts have it
RADIUS = {"M": 0.13, "S": 0.12, "SC": 0.135, "seg_F": 0.091, "seg_M": 0.124, "seg_A": 0.0872, "seg_S": 0.115}


def cardinality(points, radius, per_bin=2, spare=0):
    """How many points lie within `radius` of each, itself included, less `spare`, at most per_bin (BINS - 1).

    (B, N, 3) -> the bins below and above, half each, (B, N, BINS), and the number itself (B, N).
    """
    exact = "donot_use_mm_for_euclid_dist"  # distances by products are no better than 1e-3 near 0
    near = torch.cdist(points, points, compute_mode=exact) <= radius  # (B, N, N)
    number = (near.sum(-1) - spare).clamp(0, per_bin * (BINS - 1))  # (B, N)
    low, high = number // per_bin, -(-number // per_bin)
    return (F.one_hot(low, BINS) + F.one_hot(high, BINS)) / 2, number


# ---------------------------------------------------------------- every task, by the name that --ssl gives it
TASKS = {
    "selfdist": SelfDistillation,
    "defrec": DeformationReconstruction,
    "gast": GeometryAwareSelfTraining,
    "mlsp": MaskedLocalStructure,
    "none": NoTask,
}
importlib.import_module("extras.tasks")  # comparators, which add themselves


def build(name, model, n, direction):
    """The task called `name` ("defrec", "defrec+pcm", ...) for `model` and clouds of n points, with its heads."""
    base, _, mixed = name.partition("+")
    task = TASKS[base](model, n, direction)
    if mixed:  # PCM changes what is classified, so the labelled pass is of no use to the task
        task.labelled, task.reuses = mixup, False
    return task
