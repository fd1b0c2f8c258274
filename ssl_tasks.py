"""The self-supervised tasks that SM-DSB plugs into (Sec. IV-A of the paper), each one class with one interface.

    task.views(points, labels, key, source, generator) -> View      the augmented batch of one domain
    task.labelled(view, generator) -> x, mixture                    what is classified: the view, or PCM's mixed clouds
    task(model, view, features, generator) -> (B,)                  per-sample loss, so that samples can be masked
    task.weight(t / T), task.cls_weight                             the weights of L_ssl and L_c
    task.reuses                                                     True if it takes the labelled pass's `features`

A further task is one more such class and a line in TASKS. Everything is batched: no loop over clouds.
"""

import copy
import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

import data
from engine.fast import farthest_points, gather_points, normals
from models import GLOBAL, PerPointHead


@dataclass
class View:
    """An augmented batch of one domain: x (B, n, 3) feeds the student; y labels or None; weak (B, n, 3) the teacher;
    radius (B,) in which MLSP counts neighbours, which differs between domains."""

    x: torch.Tensor
    y: torch.Tensor | None = None
    weak: torch.Tensor | None = None
    radius: torch.Tensor | None = None


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

    cls_weight, reuses, pooled, teacher, bodies = 1.0, False, False, None, False  # bodies: made for PointSegDA, too

    def __init__(self, n):
        super().__init__()
        self.n = n

    def weight(self, progress):
        return 1.0

    def views(self, points, labels, key, source, generator):
        if labels is not None and labels.ndim == 2:  # per-point labels go where their points go
            return View(*data.plain_view_labelled(points, labels, self.n, generator))
        return View(data.plain_view(points, self.n, generator), labels)

    def labelled(self, view, generator):
        """Clouds to classify (B, n, 3), and whose labels count how much: [(share, index of samples), ...]."""
        return view.x, [(1.0, slice(None))]

    def after_step(self, model, t):
        """Called when the optimiser has taken step t."""


# ---------------------------------------------------------------- none, self-distillation (Cardace et al., WACV 2023)
class NoTask(Task):
    """No adaptation: the labelled loss alone; classes in self-distillation's view, so that only L_ssl differs."""

    bodies = True

    def __init__(self, model, n, direction):
        super().__init__(n)
        self.strong, self.crop = not direction.per_point, direction.crop

    def views(self, points, labels, key, source, generator):
        if not self.strong:
            return super().views(points, labels, key, source, generator)
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

    def views(self, points, labels, key, source, generator):
        weak = data.weak_view(points, self.n, generator)
        return replace(super().views(points, labels, key, source, generator), weak=weak)

    def forward(self, model, view, features, generator):
        with torch.no_grad():
            teacher = self.teacher.model.encoder(view.weak)[1]  # (B, 1024)
        student = (features or model.encoder(view.x))[1]  # (B, 1024)
        return -((teacher / 0.1).softmax(-1) * (student / 0.5).log_softmax(-1)).sum(-1)

    def after_step(self, model, t):
        self.teacher.update(model, t)


# ---------------------------------------------------------------- DefRec and PCM (Achituve et al., WACV 2021)
class DeformationReconstruction(Task):
    """One voxel of the cloud collapses to a Gaussian blob; the per-point head puts the points back."""

    bodies = True

    def __init__(self, model, n, direction):
        super().__init__(n)
        self.share = 0.05 if direction.per_point else 0.5
        self.cls_weight = 1 - self.share
        self.head = PerPointHead(model.encoder.point_dim, 3)

    def weight(self, progress):
        return self.share

    def forward(self, model, view, features, generator):
        deformed, hole, _ = deform(view.x, generator)
        return 20 * masked_chamfer(self.head(*model.encoder(deformed)), view.x, hole)


VOXELS = 27


def voxel(points):
    """Which of the 27 voxels of [-1, 1]^3 each point is in or nearest to, (B, N, 3) -> (B, N)."""
    cell = ((points + 1) * 1.5).floor().clamp(0, 2).long()
    return (cell * cell.new_tensor([9, 3, 1])).sum(-1)


def choose_voxel(index, least, generator):
    """A random voxel with at least `least` points for each cloud, the fullest if none has them, (B, N) -> (B,)."""
    count = F.one_hot(index, VOXELS).sum(1)  # (B, 27)
    draw = torch.rand(count.shape, generator=generator, device=index.device)
    return torch.where(count >= least, 1 + draw, count / (index.shape[1] + 1)).argmax(-1)


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


def masked_chamfer(predicted, truth, mask):
    """Squared Chamfer distance, both ways, between masked points, (B, N, 3) x2, (B, N) bool -> (B,)."""
    K = max(int(mask.sum(1).max()), 1)
    index = mask.int().argsort(dim=1, descending=True, stable=True)[:, :K]  # masked points first, (B, K)
    valid = mask.gather(1, index)
    p, q = gather_points(predicted, index), gather_points(truth, index)  # (B, K, 3)
    with torch.no_grad():  # only who is nearest; the distance itself is taken again, exactly
        d = torch.cdist(p, q).masked_fill(~(valid[:, :, None] & valid[:, None]), math.inf)  # (B, K, K)
        to_q, to_p = d.argmin(2), d.argmin(1)  # (B, K)
    there = (p - gather_points(q, to_q)).square().sum(-1)
    back = (q - gather_points(p, to_p)).square().sum(-1)
    return ((there + back) * valid).sum(1) / valid.sum(1).clamp_min(1)  # an empty mask costs nothing, not 0/0


def pcm(points, generator):
    """Point-cloud mixup: each cloud gives a share mu of its points, another of the batch the rest, both by FPS.

    Returns mixed (B, N, 3), each cloud's partner (B,) as an index, and mu ~ Beta(1, 1), one a batch.
    """
    B, N, _ = points.shape
    mu = torch.rand((), generator=generator, device=points.device).item()
    partner = torch.randperm(B, generator=generator, device=points.device)
    n = round(mu * N)
    picked = gather_points(points, farthest_points(points, max(n, N - n)))  # any prefix of FPS is FPS
    return torch.cat([picked[:, :n], picked[partner, : N - n]], 1), partner, mu


def mixup(view, generator):
    """What is classified under `+pcm`: mixed clouds, their own labels with share mu, their partners' with 1 - mu."""
    x, partner, mu = pcm(view.x, generator)
    return x, [(mu, slice(None)), (1 - mu, partner)]


# ---------------------------------------------------------------- GAST (Zou et al., ICCV 2021)
class GeometryAwareSelfTraining(Task):
    """By how many quarter turns two parts of the cloud were rotated, and which of its 27 regions was distorted."""

    cls_weight = 0.5

    def __init__(self, model, n, direction):
        super().__init__(n)
        self.turns_x, self.turns_y, self.region = nn.Linear(GLOBAL, 4), nn.Linear(GLOBAL, 4), nn.Linear(GLOBAL, VOXELS)

    def forward(self, model, view, features, generator):
        ce = lambda logits, label: F.cross_entropy(logits, label, reduction="none")
        turned, k_x, k_y, mu = turn_parts(view.x, generator)
        f = model.encoder(turned)[1]  # (B, 1024)
        rotation = mu * ce(self.turns_x(f), k_x) + (1 - mu) * ce(self.turns_y(f), k_y)  # each head its own label
        distorted, _, chosen = deform(view.x, generator, least=20)
        location = ce(self.region(model.encoder(distorted)[1]), chosen)
        return 0.2 * rotation + 0.5 * location  # weight() is 1


def quarter_turns(points, k, axis):
    """Rotate each cloud by k quarter turns, exactly, about x (axis 0) or y (axis 1): (B, n, 3), (B,) -> (B, n, 3)."""
    i, j = (axis + 1) % 3, (axis + 2) % 3
    c, s = points.new_tensor([1, 0, -1, 0])[k, None], points.new_tensor([0, 1, 0, -1])[k, None]  # (B, 1)
    out = points.clone()
    out[..., i] = c * points[..., i] - s * points[..., j]
    out[..., j] = s * points[..., i] + c * points[..., j]
    return out


def turn_parts(points, generator):
    """Two farthest-point samples of each cloud, round(mu N) points turned about x, the others about y, together N.

    Returns turned (B, N, 3), quarter turns about x (B,) and y (B,), and mu ~ Beta(1, 1), one a batch.
    """
    B, N, _ = points.shape
    mu = torch.rand((), generator=generator, device=points.device).item()
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
        super().__init__(n)
        self.shares = (0.02, 0.02, 0.02) if direction.per_point else (0.5, 0.5, 0.05)
        self.k, self.per_bin, self.spare = (10, 5, 10) if direction.per_point else (20, 2, 0)  # its authors' scripts
        self.cls_weight = 1 - self.shares[0]
        self.position, self.normal, self.count = (PerPointHead(model.encoder.point_dim, out) for out in (3, 3, BINS))

    def views(self, points, labels, key, source, generator):
        view = super().views(points, labels, key, source, generator)
        return replace(view, radius=view.x.new_full((len(points),), RADIUS[key]))

    def forward(self, model, view, features, generator):
        deformed, hole, _ = deform(view.x, generator)
        features = model.encoder(deformed)
        position = 20 * masked_chamfer(self.position(*features), view.x, hole)
        cos = (F.normalize(self.normal(*features), dim=-1) * normals(view.x, self.k)).sum(-1)  # (B, N)
        target, neighbours = cardinality(view.x, view.radius, self.per_bin, self.spare)
        log_p = self.count(*features).log_softmax(-1)  # (B, N, BINS)
        expected = self.per_bin * (log_p.exp() * torch.arange(BINS, device=log_p.device)).sum(-1)
        count = -(target * log_p).sum(-1) + 0.05 * (expected - neighbours).abs()
        w = 1 + 26 * hole  # a point in the hole counts 27 times
        inside = lambda loss: (loss * w).sum(1) / w.sum(1)
        parts = position, inside(1 - cos.abs()), inside(count)
        return sum(share * part for share, part in zip(self.shares, parts))  # weight() is 1


BINS = 16  # of the number of neighbours
# in which they are counted: unit spheres of 1024 points, bodies of 2048, as its authors' scripts have it
RADIUS = {"M": 0.13, "S": 0.12, "SC": 0.135, "seg_F": 0.091, "seg_M": 0.124, "seg_A": 0.0872, "seg_S": 0.115}


def cardinality(points, radius, per_bin=2, spare=0):
    """How many points lie within `radius` of each, itself included, less `spare`, at most per_bin (BINS - 1).

    (B, N, 3), (B,) -> shares of the two nearest bins (B, N, BINS), the number itself (B, N).
    """
    exact = "donot_use_mm_for_euclid_dist"  # distances by products are no better than 1e-3 near 0
    near = torch.cdist(points, points, compute_mode=exact) <= radius[:, None, None]  # (B, N, N)
    number = (near.sum(-1) - spare).clamp(0, per_bin * (BINS - 1))  # (B, N)
    low, share = number // per_bin, number % per_bin / per_bin
    high = (low + 1).clamp_max(BINS - 1)
    target = (1 - share)[..., None] * F.one_hot(low, BINS) + share[..., None] * F.one_hot(high, BINS)
    return target, number


# ---------------------------------------------------------------- every task, by the name that --ssl gives it
TASKS = {
    "selfdist": SelfDistillation,
    "defrec": DeformationReconstruction,
    "gast": GeometryAwareSelfTraining,
    "mlsp": MaskedLocalStructure,
    "none": NoTask,
}


def build(name, model, n, direction):
    """The task called `name` ("defrec", "defrec+pcm", ...) for `model` and clouds of n points, with its heads."""
    base, _, mixed = name.partition("+")
    task = TASKS[base](model, n, direction)
    if mixed:  # PCM changes what is classified, so the labelled pass is of no use to the task
        task.labelled, task.reuses = mixup, False
    return task
