"""What SM-DSB is compared with: other ways to keep two losses from hindering each other, on the same step.

    python stage1_ssl.py ... --select all --mtl pcgrad      # also cagrad, cgdm; sum is the paper's step

pcgrad, cagrad (Yu et al., NeurIPS 2020; Liu et al., NeurIPS 2021): the encoder's gradients of L_c and L_ssl are joined
by TorchJD's aggregators (requirements-extra.txt); each head keeps the gradient of its own loss.
cgdm (Du et al., CVPR 2021): L_c + L_ssl, and a term that turns the classifier's gradients on source and target alike.
"""

import torch
import torch.nn.functional as F

from common import UserError

CAGRAD_C = 0.4  # radius of its ball, the value of its paper
CGDM_WEIGHT = 0.01  # of the gradient discrepancy, as in its authors' scripts


def descend(mtl, model, task, L_c, L_ssl, x_t):
    """Add the gradients of one step to .grad; L_c, L_ssl scalars with their weights, x_t (B, N, 3) target clouds."""
    if mtl == "cgdm":
        gap = CGDM_WEIGHT * target_discrepancy(model, L_c, x_t)
        (L_c + L_ssl).backward(inputs=[*model.parameters(), *task.parameters()], retain_graph=True)
        gap.backward(inputs=list(model.encoder.parameters()))  # the encoder alone makes the domains alike
        return
    shared, own = list(model.encoder.parameters()), [*model.classifier.parameters(), *task.parameters()]
    flat = [flat_gradient(loss, shared) for loss in (L_c, L_ssl)]
    joined = aggregator(mtl)(torch.stack(flat))  # (2, P) -> (P,)
    for parameter, part in zip(shared, joined.split([p.numel() for p in shared])):
        parameter.grad = part.view_as(parameter).clone()
    if own:
        (L_c + L_ssl).backward(inputs=own)


def flat_gradient(loss, parameters, **how):
    """Gradient of a scalar over parameters as one vector (P,); zeros where the loss does not depend on them."""
    if not loss.requires_grad:
        return torch.cat([torch.zeros_like(p).flatten() for p in parameters])
    grads = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True, **how)
    return torch.cat([g.flatten() for g in grads])


def aggregator(mtl):
    """TorchJD's PCGrad or CAGrad, on the scale of the sum; UserError where it is not installed."""
    try:
        from torchjd.aggregation import CAGrad, PCGrad

        cagrad = CAGrad(c=CAGRAD_C) if mtl == "cagrad" else None
    except ImportError:
        remedy = "pip install -r requirements-extra.txt"
        raise UserError(f"--mtl {mtl}: needs TorchJD, which is not installed; {remedy}") from None
    return PCGrad() if mtl == "pcgrad" else lambda J: len(J) * cagrad(J)  # CAGrad starts from the mean


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
