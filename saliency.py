"""SM-DSB on one screen: how skewed is a cloud's saliency map, and which samples keep their self-supervised loss.

A labelled cloud whose saliency map has a high skewness rests its class on a few points; the paper finds that its
self-supervised gradient then tends to oppose the classification on the target (Sec. III-C). No target label is needed.

    sk  = measure(model, points, loss=ce)             # (B,) skewness of each cloud's saliency map
    lam = select(sk, beta=0.7)                        # (B,) True where the self-supervised loss stays
    loss = ce.mean() + weight * (lam * ssl_loss).mean()

Needs torch alone. As a command: python saliency.py cloud.npy --ckpt runs/NAME/stage1.pt [--label chair]
"""

import math
import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: a waiting thread sleeps, where the default spins

import torch
import torch.nn.functional as F
from torch.func import functional_call


# ---------------------------------------------------------------- the idea (Sec. III-C)
def saliency_map(points, grad, alpha=1.0):
    """Eq. (4): how much the loss rises, to first order, when a point moves towards the core of its cloud, per point.

    points (B, N, 3), any unit of length; grad (B, N, 3) = dL/dpoints; alpha >= 0 rescales the radius -> (B, N).
    Raises ValueError for another shape, such as (B, 3, N).
    """
    if points.shape[-1] != 3 or grad.shape != points.shape:
        raise ValueError(f"saliency_map: points and grad are (B, N, 3), not {(*points.shape,)} and {(*grad.shape,)}")
    x = points.detach()
    core = x.sort(dim=1).values  # torch.median takes the lower middle; the core is the mean of the two
    core = (core[:, (x.shape[1] - 1) // 2] + core[:, x.shape[1] // 2]) / 2  # (B, 3), per-axis median, constant
    offset = x - core[:, None]  # (B, N, 3)
    r = offset.norm(dim=-1)  # (B, N)
    # -(dL/dr) r^(1+a), with r dL/dr = g . (p - c): no division, finite at r = 0
    return -(grad * offset).sum(-1) * r**alpha  # Eq. (4)


def skewness(saliency):
    """Eq. (5): population skewness of each map, (B, N) -> (B,); 0 where the map is flat or not finite."""
    return standardised_moment(saliency, 3)  # Eq. (5)


def select(score, beta=0.7, keep="low", generator=None):
    """Eq. (7): keep the share beta of the batch with the lowest (highest, random) score, (B,) -> (B,) bool.

    Ties at the threshold are dropped, as Eq. (7) says. `random` keeps as many as `low` without ties; `all` is the base.
    Raises ValueError for another `keep` or a beta outside [0, 1].
    """
    if callable(keep):  # a rule of one's own, f(score, beta) -> (B,) bool
        return keep(score, beta)
    if keep not in ("low", "high", "random", "all") or not 0 <= beta <= 1:
        raise ValueError(f"select: keep is low, high, random or all and beta in [0, 1], not {keep!r}, {beta!r}")
    n = math.floor(round(len(score) * beta, 9) + 0.5)  # halves up; 45 * .7 is a half but for its rounding
    if keep == "all" or n >= len(score):
        return torch.ones_like(score, dtype=torch.bool)
    if keep == "random":
        score = torch.rand(len(score), generator=generator, device=score.device)
    if keep == "high":
        score = -score
    tau = score.sort().values[n]  # the first score that is not kept
    return score < tau  # Eq. (7)


def measure(model, points, labels=None, *, loss=None, alpha=1.0, mode="train", score="skewness", generator=None):
    """Skewness (or another of SCORES) of each cloud's saliency map, (B, N, 3) -> (B,); nothing of the model changes.

    loss: the per-sample (or summed) classification loss of a pass already made, with `points` a leaf of its graph that
    requires grad; the graph is retained. Without it a pass of its own is made: mode "train" with batch statistics and
    dropout, "eval" with neither, so that a score does not depend on the rest of the batch (Zheng et al. 2019).
    labels: (B,), or (B, N) for per-point logits; None takes the predicted class. ValueError: what to give instead.
    """
    if mode not in ("train", "eval") or (len(points) == 1 and mode == "train" if loss is None else mode == "eval"):
        raise ValueError(f"measure: mode is eval, without loss=, or train, of 2 clouds, not {mode!r} of {len(points)}")
    if loss is not None:
        (grad,) = torch.autograd.grad(loss.sum(), points, retain_graph=True)
        return SCORES[score](saliency_map(points, grad, alpha), loss.detach(), generator)
    model = model.module if hasattr(model, "device_ids") else model  # out of DataParallel, DistributedDataParallel
    x = torch.as_tensor(points).detach().to(next(model.parameters(), torch.empty(0))).requires_grad_()  # as the weights
    modes = [(module, module.training) for module in model.modules()]
    rng = torch.random.fork_rng([x.device] if x.is_cuda else [])
    try:
        model.train(mode == "train")
        with rng, torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            out = functional_call(model, {name: b.clone() for name, b in model.named_buffers()}, (x,))  # b may change
            out = filter(torch.is_tensor, out if isinstance(out, (tuple, list)) else [out])
            fits = [z for z in out if z.shape[:-1] in (x.shape[:1], x.shape[:2])]
            if len(fits) != 1:
                raise ValueError("measure: the model must return one tensor of logits, (B, C) or (B, N, C); wrap it")
            y = fits[0].argmax(-1) if labels is None else torch.as_tensor(labels, device=x.device).long()
            if x.device.type == "cpu" and not 0 <= y.min() <= y.max() < fits[0].shape[-1]:  # a GPU would wait
                raise ValueError(f"measure: labels are in 0..{fits[0].shape[-1] - 1}, not {y.min():d}..{y.max():d}")
            ce = F.cross_entropy(fits[0].flatten(0, -2), y.flatten(), reduction="none")
            (grad,) = torch.autograd.grad(ce.sum(), x)
    finally:
        for module, training in modes:
            module.training = training
    return SCORES[score](saliency_map(x, grad, alpha), ce.detach().view(len(x), -1).mean(1), generator)


# ---------------------------------------------------------------- what may stand in for skewness (future work)
def standardised_moment(saliency, k):
    """E[(s - mean)^k] / sigma^k of each map, population sigma, (B, N) -> (B,); 0 where it is flat or not finite."""
    s = saliency.float() if saliency.dtype.itemsize < 4 else saliency
    s = s / s.abs().amax(-1, keepdim=True)  # a positive factor changes nothing, but tiny gradients would underflow
    d = s - s.mean(-1, keepdim=True)
    moment = (d**k).mean(-1) / (d**2).mean(-1) ** (k / 2)
    return torch.where(moment.isfinite(), moment, 0.0)


def shares(saliency):
    """|s| of each map divided by its sum, in double precision; all equal where the map is zero, (B, N) -> (B, N)."""
    a = saliency.double().abs()
    a = torch.where(a.sum(-1, keepdim=True) > 0, a, 1.0)
    a = a / a.amax(-1, keepdim=True)
    return a / a.sum(-1, keepdim=True)


def gini(saliency):
    """Gini coefficient of |s|, (B, N) -> (B,): 0 for an even map, 1 - 1/N for one point."""
    a, N = shares(saliency).sort(-1).values, saliency.shape[-1]
    return (a * (2 * torch.arange(1, N + 1, device=a.device) - N - 1)).sum(-1) / N


# name -> f(saliency (B, N), loss (B,), generator) -> (B,); `low` masks the samples with a high score
SCORES = {
    "skewness": lambda S, L, g: skewness(S),
    "kurtosis": lambda S, L, g: standardised_moment(S, 4),
    "entropy": lambda S, L, g: -torch.special.entr(shares(S)).sum(-1),  # minus: an uneven map is high
    "gini": lambda S, L, g: gini(S),
    "top5": lambda S, L, g: shares(S).topk(math.ceil(0.05 * S.shape[-1])).values.sum(-1),  # of the top 5 % of points
    "loss": lambda S, L, g: L,
    "random": lambda S, L, g: torch.rand(len(S), generator=g, device=S.device),
}


if __name__ == "__main__":  # your own cloud: class, confidence, skewness, a picture
    import runpy

    runpy.run_module("extras.my_cloud", run_name="__main__")
