"""Predictions, accuracy, mean IoU, and gradients as one vector."""

import math

import numpy as np
import torch


@torch.no_grad()
def describe(model, points, batch=64):
    """Logits (n, C), of parts (n, N, C), and global feature (n, F) of each cloud in eval mode, (n, N, 3) -> tensors."""
    training = model.training
    model.eval()
    parts = [(model.predict(f), f[1]) for f in map(model.encoder, points.split(batch))]
    model.train(training)
    return tuple(map(torch.cat, zip(*parts)))


def classes_of(logits):
    """Argmax class of each cloud (or point), (..., C) -> uint8 array (...)."""
    return logits.argmax(-1).to(torch.uint8).cpu().numpy()


def confusion(truth, predicted, C):
    """Counts (C, C), rows the truth, columns the prediction."""
    return np.bincount(truth * C + predicted, minlength=C * C).reshape(C, C)


def accuracies(matrix):
    """Overall accuracy, mean class accuracy over the classes present in the truth, and each class's (None: absent)."""
    n = matrix.sum(1)
    per_class = [float(matrix[c, c] / n[c]) if n[c] else None for c in range(len(n))]
    return float(np.trace(matrix) / n.sum()), float(np.mean([a for a in per_class if a is not None])), per_class


def mean_iou(truth, predicted, C):
    """PointSegDA's metric: per cloud the mean IoU over the parts in truth or prediction, then the mean over clouds.

    (n, N) labels in 0..C-1 -> mean IoU, and each part's mean over the clouds where it is in either (None: nowhere).
    """
    one_hot = lambda labels: labels[..., None] == np.arange(C)  # (n, N, C)
    y, p = one_hot(truth), one_hot(predicted)
    both, either = (y & p).sum(1), (y | p).sum(1)  # (n, C)
    iou = np.divide(both, either, out=np.full(both.shape, np.nan), where=either > 0)
    part_iou = [float(np.nanmean(column)) if np.isfinite(column).any() else None for column in iou.T]
    return float(np.nanmean(iou, 1).mean()), part_iou


def scores_of(truth, predicted, classes):
    """The metrics of one moment, and a score of each class or part: accuracies of (n,), IoU of (n, N)."""
    if truth.ndim == 2:
        miou, part_iou = mean_iou(truth, predicted, len(classes))
        per_part = dict(zip(classes, part_iou))
        return {"miou": miou, "part_iou": per_part}, per_part
    acc, mean_acc, per_class = accuracies(confusion(truth, predicted, len(classes)))
    return {"acc": acc, "mean_acc": mean_acc}, dict(zip(classes, per_class))


def quality(truth, predicted, C):
    """What a moment is selected by: accuracy of (n,) classes, mean IoU of (n, N) parts."""
    return mean_iou(truth, predicted, C)[0] if truth.ndim == 2 else float((predicted == truth).mean())


def spread(values):
    """Percent: mean and, from two values on, the sample standard deviation over seeds."""
    values = 100 * np.array(values)
    return f"{values.mean():.1f}" + (f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else "")


def flat_gradient(loss, parameters, **how):
    """Gradient of a scalar over parameters as one vector (P,); zeros where the loss does not depend on them."""
    if not loss.requires_grad:
        return torch.cat([torch.zeros_like(p).flatten() for p in parameters])
    grads = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True, **how)
    return torch.cat([g.flatten() for g in grads])


def cosine(a, b):
    """Cosine of two gradients (P,) as a float; nan where one of them vanished."""
    a, b = a.double(), b.double()
    size = (a.norm() * b.norm()).item()
    return (a @ b).item() / size if size > 0 and math.isfinite(size) else math.nan
