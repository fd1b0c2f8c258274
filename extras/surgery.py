"""What SM-DSB is compared with: other ways to keep two losses from hindering each other, on the same step.

    python stage1_ssl.py ... --select all --mtl pcgrad      # also cagrad, cgdm; sum is the paper's step

pcgrad, cagrad (Yu et al., NeurIPS 2020; Liu et al., NeurIPS 2021): the encoder's gradients of L_c and L_ssl are joined
by TorchJD's aggregators (requirements-extra.txt); each head keeps the gradient of its own loss.
cgdm (Du et al., CVPR 2021): L_c + L_ssl, and a term that turns the classifier's gradients on source and target alike.
A further way is a function of (model, task, L_c, L_ssl, u) that adds the gradients to .grad, and a line in METHODS.
"""

from functools import partial

import torch
import torch.nn.functional as F

from engine.base import UserError
from engine.metrics import flat_gradient

CAGRAD_C = 0.4  # radius of its ball, the value of its paper
CGDM_WEIGHT = 0.01  # of the gradient discrepancy, as in its authors' scripts


def method(name):
    """How --mtl NAME joins the losses; UserError for an unknown name or a library that is not installed."""
    if name not in METHODS:
        raise UserError(f"--mtl {name}: unknown; choose sum or one of {', '.join(METHODS)}")
    return METHODS[name]()


# ---------------------------------------------------------------- PCGrad, CAGrad
def joined(aggregate, model, task, L_c, L_ssl, u):
    """The encoder's two gradients (2, P) become one (P,), each head gets that of its own loss."""
    shared = list(model.encoder.parameters())
    G = aggregate(torch.stack([flat_gradient(loss, shared) for loss in (L_c, L_ssl)]))  # (2, P) -> (P,)
    for parameter, part in zip(shared, G.split([p.numel() for p in shared])):
        parameter.grad = part.view_as(parameter).clone()
    (L_c + L_ssl).backward(inputs=[*model.classifier.parameters(), *task.parameters()])


def torchjd():
    """TorchJD's aggregators; UserError where it is not installed."""
    try:
        from torchjd import aggregation
    except ImportError:
        remedy = "pip install -r requirements-extra.txt"
        raise UserError(f"--mtl: this way needs TorchJD, which is not installed; {remedy}") from None
    return aggregation


def pcgrad():
    return partial(joined, torchjd().PCGrad())


def cagrad():
    try:
        aggregate = torchjd().CAGrad(c=CAGRAD_C)
    except ImportError:
        remedy = "pip install -r requirements-extra.txt"
        raise UserError(f"--mtl cagrad: needs TorchJD's cagrad extra, which is not installed; {remedy}") from None
    return partial(joined, lambda G: len(G) * aggregate(G))  # CAGrad starts from the mean, the step from the sum


# ---------------------------------------------------------------- CGDM
def gradient_discrepancy(g_s, g_t):
    """1 - cos of two gradients (P,): 0 where they agree, 2 where they are opposed. Du et al., Eq. (5)."""
    return 1 - F.cosine_similarity(g_s, g_t, dim=0)


def target_discrepancy(model, L_c, x_t):
    """Discrepancy of the classifier's gradients of L_c and of the target's cross-entropy with its own pseudo-labels.

    A pseudo-label weighs 1 + exp(-H), H the entropy of its prediction, so that a sure one counts up to twice.
    """
    logits = model(x_t)
    p = logits.detach().softmax(-1)
    w = 1 + torch.exp((p * p.clamp_min(1e-8).log()).sum(-1))
    L_t = (w / w.sum() * F.cross_entropy(logits.movedim(-1, 1), p.argmax(-1), reduction="none")).sum()
    heads = list(model.classifier.parameters())
    return gradient_discrepancy(*(flat_gradient(loss, heads, create_graph=True) for loss in (L_c, L_t)))


def cgdm():
    def descend(model, task, L_c, L_ssl, u):
        gap = CGDM_WEIGHT * target_discrepancy(model, L_c, u.x)
        (L_c + L_ssl).backward(inputs=[*model.parameters(), *task.parameters()], retain_graph=True)
        gap.backward(inputs=list(model.encoder.parameters()))  # the encoder alone makes the domains alike

    return descend


METHODS = {"pcgrad": pcgrad, "cagrad": cagrad, "cgdm": cgdm}
