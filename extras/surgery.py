"""What SM-DSB is compared with: other ways to keep two losses from hindering each other, on the same step.

    python stage1_ssl.py ... --select all --mtl pcgrad      # any of METHODS; sum is the paper's step

The encoder's gradients of L_c and L_ssl are joined, by TorchJD's aggregators (requirements-extra.txt) or by what stands
here; each head keeps the gradient of its own loss. docs/comparators.md has their papers, and where they differ.
A further way is a function of (model, task, L_c, L_ssl, u) that adds the gradients to .grad, and a line in METHODS.
"""

import math
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linprog

from engine.base import UserError
from engine.metrics import flat_gradient

CAGRAD_C = 0.4  # radius of its ball, the value of its paper
CGDM_WEIGHT = 0.01  # of the gradient discrepancy, as in its authors' scripts


def method(name):
    """How --mtl NAME joins the losses; UserError for an unknown name or a library that is not installed."""
    if name not in METHODS:
        raise UserError(f"--mtl {name}: unknown; choose sum or one of {', '.join(METHODS)}")
    return through_torchjd(name) if name in TORCHJD else METHODS[name]


# ---------------------------------------------------------------- one gradient of the encoder from several
def joined(aggregate, model, task, L_c, L_ssl, u, more=lambda *_: ()):
    """The encoder's gradients (M, P) become one (P,), each head gets that of its own loss.

    M is 2, for L_c and L_ssl, and one for each loss that more(model, task, u) gives.
    """
    shared = list(model.encoder.parameters())
    G = torch.stack([flat_gradient(loss, shared) for loss in (L_c, L_ssl, *more(model, task, u))])
    leave(shared, aggregate(G) if G.isfinite().all() else G.sum(0))  # not finite: the run says so, and stops
    (L_c + L_ssl).backward(inputs=[*model.classifier.parameters(), *task.parameters()])


def leave(parameters, g):
    """A gradient (P,) to the .grad of parameters that have none yet."""
    for parameter, part in zip(parameters, g.split([p.numel() for p in parameters])):
        parameter.grad = part.view_as(parameter).clone()


# name -> TorchJD's aggregator, its options, and a factor: where the weights add up to 1, two losses want twice that
TORCHJD = {
    "pcgrad": ("PCGrad", {}, 1),
    "cagrad": ("CAGrad", {"c": CAGRAD_C}, 2),
    "mgda": ("MGDA", {}, 2),
    "upgrad": ("UPGrad", {}, 2),
    "alignedmtl": ("AlignedMTL", {}, 2),
}


def through_torchjd(name):
    """`joined` by an aggregator of TorchJD; UserError where that, or what it needs, is not installed."""
    aggregator, options, factor = TORCHJD[name]
    try:
        from torchjd import aggregation

        aggregate = getattr(aggregation, aggregator)(**options)
    except ImportError:
        remedy = "pip install -r requirements-extra.txt"
        raise UserError(f"--mtl {name}: needs TorchJD, which is not installed with all its extras; {remedy}") from None
    return partial(joined, lambda G: factor * aggregate(G))


# ---------------------------------------------------------------- Gradient Harmonization
def gh(model, task, L_c, L_ssl, u):
    """GH: two gradients in conflict lose their parts along each other, stated as weights of the losses, heads too."""
    shared = list(model.encoder.parameters())
    G = torch.stack([flat_gradient(loss, shared) for loss in (L_c, L_ssl)])  # (2, P)
    w = 1 - (G[0] @ G[1]).clamp_max(0) / G.square().sum(1).clamp_min(torch.finfo(G.dtype).tiny)
    leave(shared, w @ G)
    (w[0] * L_c + w[1] * L_ssl).backward(inputs=[*model.classifier.parameters(), *task.parameters()])


def turned_apart(G):
    """GH++: two gradients (2, P) in conflict turn, each by half of what is above 90 degrees -> their sum (P,)."""
    a, b = G.norm(dim=1)
    across = F.normalize(G, dim=1)
    cos = across[0] @ across[1]
    if cos >= 0:
        return G.sum(0)
    along, across = across[0], F.normalize(across[1] - cos * across[0], dim=0)  # of opposed ones no plane: across is 0
    turn = (torch.acos(cos.clamp_min(-1)) - math.pi / 2) / 2
    return (a * turn.cos() - b * turn.sin()) * along + (a * turn.sin() + b * turn.cos()) * across


# ---------------------------------------------------------------- ParetoDA
def surrogates(model, task, u):
    """ParetoDA's stand-in for target classification, on either half of the unlabelled clouds; the second is held out.

    Minus the mutual information of class and cloud in the predictions, refined where the task can (--ssl paretoda).
    """
    features = model.encoder(u.x)
    p = model.predict(features).softmax(-1)
    p = task.refine(p, features[1]) if hasattr(task, "refine") else p
    entropy = lambda p: torch.special.entr(p).sum(-1)
    return [entropy(half).mean() - entropy(half.flatten(0, -2).mean(0)) for half in p.chunk(2)]


def preferred(G):
    """Of the combinations of three gradients the one that agrees most with a fourth, held out: (4, P) -> (P,).

    None of the three is opposed more than the held-out one opposes it, and the one that agrees best with that not at
    all. There is always such a combination: the shortest opposes none.
    """
    scaled = G / G.norm(dim=1).max().clamp_min(torch.finfo(G.dtype).tiny)  # the solver's tolerance is absolute
    products = (scaled[:3] @ scaled.T).double().cpu().numpy()  # (3, 4)
    agreement = products[:, 3]
    least = np.where(agreement > 0, -np.inf, agreement if (agreement > 0).any() else 0.0)
    least[agreement.argmax()] = 0
    rows = np.isfinite(least)
    limits = dict(A_ub=-products[rows, :3], b_ub=-least[rows], A_eq=np.ones((1, 3)), b_eq=[1])
    weights = linprog(-agreement, **limits).x  # each at least 0
    return 3 * torch.as_tensor(weights, dtype=G.dtype, device=G.device) @ G[:3]


# ---------------------------------------------------------------- CGDM
def gradient_discrepancy(g_s, g_t):
    """1 - cos of two gradients (P,): 0 where they agree, 2 where they are opposed. Du et al., Eq. (5)."""
    return 1 - F.cosine_similarity(g_s, g_t, dim=0)


def sureness(p):
    """1 + exp(-H) of each prediction (..., C), H its entropy, as a share of all: (...)."""
    w = 1 + torch.exp(-torch.special.entr(p).sum(-1))
    return w / w.sum()


def target_discrepancy(model, L_c, x_t, label=None):
    """Discrepancy of the classifier's gradients of L_c and of the target's cross-entropy with its pseudo-labels.

    label: (B,), or the predicted ones. A pseudo-label weighs 1 + exp(-H), H the entropy of its prediction, so that a
    sure one counts up to twice.
    """
    logits = model(x_t)
    p = logits.detach().softmax(-1)
    label = p.argmax(-1) if label is None else label
    L_t = (sureness(p) * F.cross_entropy(logits.movedim(-1, 1), label, reduction="none")).sum()
    heads = list(model.classifier.parameters())
    return gradient_discrepancy(*(flat_gradient(loss, heads, create_graph=True) for loss in (L_c, L_t)))


def cgdm(model, task, L_c, L_ssl, u):
    """CGDM: L_c + L_ssl and the discrepancy; its other terms and the clustered labels are --ssl cgdm's."""
    gap = CGDM_WEIGHT * target_discrepancy(model, L_c, u.x, getattr(task, "label", None))
    (L_c + L_ssl).backward(inputs=[*model.parameters(), *task.parameters()], retain_graph=True)
    gap.backward(inputs=list(model.encoder.parameters()))  # the encoder alone makes the domains alike


METHODS = TORCHJD | {
    "gh": gh,
    "ghpp": partial(joined, turned_apart),
    "paretoda": partial(joined, preferred, more=surrogates),
    "cgdm": cgdm,
}
