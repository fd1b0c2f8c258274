"""Does a domain lie on its side? Which axis is up is learnt from the source, whose z is, and asked of other clouds.

    weights = learn(source)              # a plain list, kept in checkpoints
    lies([profiles(target)], weights)    # "y" where y seems to be up instead of z, "x" alike, None where none does

Whole objects of other libraries were told from a hundred clouds, often from twenty; crops of real scans, which have
little of a height profile, hardly ever: None does not prove that z is up.
"""

import warnings

import numpy as np

QUANTILES, BINS = np.linspace(0.02, 0.98, 13), 12
MOST_CLOUDS, MOST_POINTS = 600, 512
LEAST = 0.35  # spread of a cloud's verdict, at least: a single cloud must be all but sure
AXES = np.array(["x", "y", "z"])


def profiles(points):
    """What each axis of each cloud looks like: quantiles about the middle and a histogram, (n, N, 3) -> (n, 3, F)."""
    # evenly from all of them: clouds may come class by class, points part by part
    clouds, each = (-(-n // most) for n, most in zip(points.shape, (MOST_CLOUDS, MOST_POINTS)))
    x = np.asarray(points[::clouds, ::each], np.float64)
    q = np.quantile(x, QUANTILES, axis=1).transpose(1, 2, 0)  # (n, 3, 13)
    low, high = x.min(1, keepdims=True), x.max(1, keepdims=True)
    place = ((x - low) / np.maximum(high - low, 1e-12) * BINS).astype(int).clip(max=BINS - 1)  # (n, N, 3)
    share = np.stack([(place == b).mean(1) for b in range(BINS)], -1)  # (n, 3, 12)
    return np.concatenate([q - (q[..., :1] + q[..., -1:]) / 2, share**0.5], -1)


def learn(points):
    """Weights of a logistic regression "this axis is up", from clouds (n, N, 3) with z up; the last is the offset."""
    from sklearn.linear_model import LogisticRegression

    f = profiles(points)
    model = LogisticRegression(C=0.3, max_iter=500).fit(f.reshape(-1, f.shape[-1]), np.tile([0, 0, 1], len(f)))
    return [round(float(w), 6) for w in (*model.coef_[0], *model.intercept_)]


def lies(profiles, weights):
    """The axis that seems to be up instead of z, by three standard errors over n clouds; None if none does."""
    verdict = np.tanh((np.concatenate(profiles) @ np.array(weights[:-1]) + weights[-1]) / 2)  # (n, 3), 2 p - 1
    axis = int(verdict.mean(0).argmax())
    more = verdict[:, axis] - verdict[:, 2]
    error = max(more.std(), LEAST) / len(more) ** 0.5
    return str(AXES[axis]) if more.mean() > 3 * error else None


def warn(whose, profiles, weights, flag="--target-up"):
    """A warning where clouds seem to lie on their side; profiles: [(n, 3, F), ...] of them."""
    if axis := lies(profiles, weights):
        text = f"{whose} seem to have {axis} up, not z as the source has; if they lie on their side, give {flag} {axis}"
        warnings.warn(text)
