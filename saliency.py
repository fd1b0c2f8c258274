"""SM-DSB on one screen: how skewed is a cloud's saliency map, and which samples keep their self-supervised loss.

A labelled cloud whose 3D saliency map (Sec. III-A) has a high skewness rests its class on a few points; the paper finds
that its self-supervised gradient then tends to oppose the classification on the target. No target label is needed.

    sk  = measure(model, points, loss=ce)             # (B,) skewness of each cloud's saliency map
    lam = select(sk, beta=0.7)                        # (B,) True where the self-supervised loss stays
    loss = ce.mean() + weight * (lam * ssl_loss).mean()

As a command it scores your own cloud (.npy, .ply, .txt or .xyz; z up, any scale):

    python saliency.py cloud.npy --ckpt runs/.../stage1.pt [--label chair]
"""

import argparse
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.func import functional_call


# ---------------------------------------------------------------- the idea (Sec. III-A, III-B)
def saliency_map(points, grad, alpha=1.0):
    """Eq. (4): first-order change of the loss when a point moves towards the core of its cloud, per point.

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
    s = saliency.float() if saliency.dtype.itemsize < 4 else saliency
    s = s / s.abs().amax(-1, keepdim=True)  # a positive factor changes nothing, but tiny gradients would underflow
    d = s - s.mean(-1, keepdim=True)
    sk = (d**3).mean(-1) / (d**2).mean(-1) ** 1.5  # Eq. (5)
    return torch.where(sk.isfinite(), sk, 0.0)


def select(score, beta=0.7, keep="low", generator=None):
    """Eq. (6), (7): keep the share beta of the batch with the lowest (highest, random) score, (B,) -> (B,) bool.

    Ties at the threshold are dropped, as Eq. (7) says. `random` keeps as many as `low` without ties; `all` is the base.
    Raises ValueError for another `keep` or a beta outside [0, 1].
    """
    if keep not in ("low", "high", "random", "all") or not 0 <= beta <= 1:
        raise ValueError(f"select: keep is low, high, random or all and beta in [0, 1], not {keep!r}, {beta!r}")
    n = math.floor(round(len(score) * beta, 9) + 0.5)  # halves up; 45 * .7 is a half but for its rounding
    if keep == "all" or n >= len(score):
        return torch.ones_like(score, dtype=torch.bool)
    if keep == "random":
        score = torch.rand(len(score), generator=generator, device=score.device)
    if keep == "high":
        score = -score
    tau = score.sort().values[n]  # Eq. (6): the first score that is not kept
    return score < tau  # Eq. (7)


def measure(model, points, labels=None, *, loss=None, alpha=1.0, mode="train"):
    """Skewness of each cloud's saliency map, (B, N, 3) -> (B,), leaving weights, .grad, buffers and RNG untouched.

    loss: the per-sample (or summed) classification loss of a pass already made, with `points` a leaf of its graph that
    requires grad; the graph is retained. Without it a pass of its own is made: mode "train" with batch statistics and
    dropout, "eval" with running statistics and none, so that a score does not depend on the rest of the batch
    (Zheng et al. 2019). labels: (B,), or (B, N) for per-point logits; None takes the predicted class.
    Raises ValueError for another mode, or for "eval" with a loss, whose pass is already made.
    """
    if mode not in ("train", "eval") or (loss is not None and mode == "eval"):
        raise ValueError(f"measure: mode is train or eval, and eval makes its own pass without loss=, not {mode!r}")
    if loss is not None:
        (grad,) = torch.autograd.grad(loss.sum(), points, retain_graph=True)
        return skewness(saliency_map(points, grad, alpha))
    x = points.detach().float().requires_grad_()
    modes = [(module, module.training) for module in model.modules()]
    buffers = {name: b.clone() for name, b in model.named_buffers()}  # batch norm updates the copies, not the model
    rng = torch.random.fork_rng([x.device] if x.is_cuda else [])
    try:
        model.train(mode == "train")
        with rng, torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            logits = functional_call(model, buffers, (x,))  # (B, C), or (B, N, C)
            y = logits.argmax(-1) if labels is None else labels
            ce = F.cross_entropy(logits.flatten(0, -2), y.flatten(), reduction="sum")
            (grad,) = torch.autograd.grad(ce, x)
    finally:
        for module, training in modes:
            module.training = training
    return skewness(saliency_map(x, grad, alpha))


# ---------------------------------------------------------------- the command: score your own cloud (Fig. 5)
def three_levels(saliency):
    """Fig. 5: each map cut into three levels, at d/3 and 2d/3 of its range d, (..., N) -> (..., N) in {0, 1, 2}."""
    low, high = saliency.amin(-1, keepdim=True), saliency.amax(-1, keepdim=True)
    return ((saliency - low) / (high - low).clamp_min(1e-30) * 3).long().clamp(0, 2)


def main():
    from clouds import draw, read_cloud, write_ply
    from common import Parser, UserError, load_checkpoint, model_of
    from data import CLASSES, MOST_POINTS, evaluation_subset

    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cloud", type=Path, help="a cloud of points: .npy, .ply, .txt or .xyz, z up")
    parser.add_argument("--ckpt", type=Path, required=True, help="RUN/stage1.pt or RUN/stage2.pt")
    parser.add_argument("--label", choices=CLASSES, help="class whose loss is explained (default: the predicted one)")
    args = parser.parse_args()

    checkpoint = load_checkpoint(args.ckpt)
    points = read_cloud(args.cloud)  # (N, 3), unit sphere
    if len(points) > MOST_POINTS:  # a scan of a million points is sampled as the training clouds were
        points = evaluation_subset(points[None], MOST_POINTS)[0]
    if checkpoint["config"]["args"]["task"].startswith("seg"):
        raise UserError(f"{args.ckpt} segments; give a checkpoint of M_S, M_SC, ..., which classifies")
    model = model_of(checkpoint).eval()
    alpha = checkpoint["config"]["args"]["alpha"]

    x = points[None].requires_grad_()
    logits = model(x)
    label = logits.argmax(-1) if args.label is None else torch.tensor([CLASSES.index(args.label)])
    (grad,) = torch.autograd.grad(F.cross_entropy(logits, label), x)
    S = saliency_map(x, grad, alpha)
    sk, level = skewness(S).item(), three_levels(S)[0]

    confidence, predicted = logits[0].softmax(-1).max(-1)
    title = f"{CLASSES[predicted]} ({confidence:.0%}), saliency for {CLASSES[label]}: skewness {sk:+.3f}"
    picture, ply = (Path(f"{args.cloud.stem}-saliency{end}") for end in (".png", ".ply"))  # where you stand
    colours = write_ply(ply, points, level)
    draw(picture, points, colours, title)
    print(f"{args.cloud}: {title}\nwrote {picture} and {ply}")


if __name__ == "__main__":
    from common import cli

    cli(main)
