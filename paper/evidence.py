"""The statistics behind the figures, in numpy and scipy: do two series go together, does a score predict conflict,
which of two quantities is the cause? Every interval is a 95 % percentile interval of a seeded bootstrap.

    correlations(x, y, seed)             # Fig. 1: Pearson, Spearman, of the steps of one run
    prediction(scores, cosines, ...)     # per sample: AUC for "cosine below 0"
    additive_noise(cause, effect)        # ANM: fit one from the other, HSIC of what is left with the cause
"""

import math

import numpy as np
from scipy import interpolate, spatial, stats

from engine.base import UserError

RESAMPLES = 2000
LEAST = 5  # fewer numbers than that have no statistics
FEW = 20  # fewer steps than that have no interval: too few blocks to draw from
MOST = 2000  # of an HSIC test, whose matrices are n x n
GAP_RESAMPLES, GAP_POINTS = 200, 300  # of the difference of two HSIC scores


# ---------------------------------------------------------------- bootstrap
def resamples(n, length, seed):
    """Moving-block bootstrap (Kuensch 1989): RESAMPLES rows of n indices, joined from blocks of `length` neighbours.

    Neighbouring steps of a run resemble each other, so whole stretches are drawn; length 1 is the ordinary bootstrap.
    """
    starts = np.random.default_rng(seed).integers(n - length + 1, size=(RESAMPLES, math.ceil(n / length)))
    return (starts[..., None] + np.arange(length)).reshape(RESAMPLES, -1)[:, :n]


def interval(values):
    """95 % percentile interval of bootstrap values (R,); (nan, nan) where over half of the resamples have no value."""
    values = np.asarray(values)[np.isfinite(values)]
    if len(values) <= RESAMPLES // 2:
        return math.nan, math.nan
    return tuple(float(v) for v in np.quantile(values, (0.025, 0.975)))


# ---------------------------------------------------------------- Fig. 1: do two series go together?
def pearson(x, y):
    """Pearson's correlation along the last axis, (..., n) x2 -> (...); nan where one does not vary."""
    x, y = (v - v.mean(-1, keepdims=True) for v in (x, y))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x * y).sum(-1) / np.sqrt((x**2).sum(-1) * (y**2).sum(-1))


def ranks(x):
    return stats.rankdata(x, axis=-1)


def correlations(x, y, seed):
    """Pearson and Spearman with intervals, of two series (n,) and of their differences from step to step.

    Both may just drift as training goes on, which makes them correlate whatever they are; their differences do not
    drift. Blocks are sqrt(n) long. Points with a value that is not finite are left out; below FEW of them there is no
    interval (nan, nan), below LEAST + 1 a UserError.
    """
    sound = np.isfinite(x) & np.isfinite(y)
    x, y = np.asarray(x, float)[sound], np.asarray(y, float)[sound]
    if len(x) < LEAST + 1:
        raise UserError(f"{len(x)} points are too few for a correlation; take more steps or a smaller --every")
    found = {"n": len(x), "block": math.ceil(len(x) ** 0.5)}
    for name, a, b in (("", x, y), ("_of_differences", np.diff(x), np.diff(y))):
        i = resamples(len(a), math.ceil(len(a) ** 0.5), seed)
        for kind, look in (("pearson", np.asarray), ("spearman", ranks)):
            found[kind + name] = float(pearson(look(a), look(b)))
            drawn = pearson(look(a[i]), look(b[i]))
            found[kind + name + "_interval"] = interval(drawn) if len(x) >= FEW else (math.nan, math.nan)
    return found


# ---------------------------------------------------------------- per sample: does a score predict conflict?
def auc(rank, positive):
    """Area under the ROC curve from ranks (..., n), ties halved, for positive (..., n) bool -> (...).

    The chance that a positive has the higher score; nan where all are positive or none is.
    """
    n1 = positive.sum(-1)
    n0 = positive.shape[-1] - n1
    with np.errstate(invalid="ignore", divide="ignore"):
        return ((rank * positive).sum(-1) - n1 * (n1 + 1) / 2) / (n1 * n0)


def within(score, positive, classes):
    """AUC among samples of one class, over all pairs of a positive and another of the same class: (..., n) -> (...).

    It is free of what classes differ in. nan where no class has both.
    """
    area, pairs = 0.0, 0.0
    for c in np.unique(classes):
        mine, own = score[..., classes == c], positive[..., classes == c]
        n = own.sum(-1) * (~own).sum(-1)  # pairs
        area, pairs = area + np.nan_to_num(auc(ranks(mine), own)) * n, pairs + n
    with np.errstate(invalid="ignore", divide="ignore"):
        return area / pairs


def stratified(classes, seed):
    """RESAMPLES rows of n indices, each class drawn from itself as often as it is there, (n,) -> (RESAMPLES, n)."""
    rng, rows = np.random.default_rng(seed), np.empty((RESAMPLES, len(classes)), int)
    for c in np.unique(classes):
        own = np.flatnonzero(classes == c)
        rows[:, own] = own[rng.integers(len(own), size=(RESAMPLES, len(own)))]
    return rows


def prediction(scores, cosines, classes, seed):
    """AUC of `scores` for "cosine below 0", within classes, too, and Spearman's rho with -cosine.

    scores, cosines (M, n): n samples at M moments, classes (n,) -> M dicts auc, within, rho, each with an interval
    (auc_interval ...), above .5 (0) as the paper claims, and one for the mean of the moments that have an AUC, whose
    resamples draw a sample with all its moments. Intervals are over clouds of one run, not over runs. A moment whose
    cosines are all nan has none of them; nan also where all or none conflict. A sample whose gradient vanished at
    another moment is left out; UserError below LEAST of the others.
    """
    looked = np.isfinite(cosines).any(1)
    sound = np.isfinite(scores).all(0) & np.isfinite(cosines[looked]).all(0)
    scores, cosines, classes = scores[:, sound], cosines[:, sound], classes[sound]
    if sound.sum() < LEAST:
        raise UserError(f"{sound.sum()} samples with a gradient are too few; take more --samples, or look at the run")
    i, own = resamples(scores.shape[1], 1, seed), stratified(classes, seed)
    found, drawn = [], []
    for known, score, cosine in zip(looked, scores, cosines):
        if not known:
            found.append((math.nan,) * 3)
            drawn.append((np.full(RESAMPLES, math.nan),) * 3)
            continue
        rank, low = ranks(score[i]), ranks(-cosine[i])
        areas = auc(rank, cosine[i] < 0), within(score[own], cosine[own] < 0, classes)
        drawn.append((*areas, pearson(rank, low)))
        areas = auc(ranks(score), cosine < 0), within(score, cosine < 0, classes)
        found.append((*areas, pearson(ranks(score), ranks(-cosine))))
    defined = [m for m, (area, *_) in enumerate(found) if np.isfinite(area)] or range(len(found))
    found.append(tuple(np.mean([found[m] for m in defined], 0)))
    drawn.append(tuple(np.mean([drawn[m] for m in defined], 0)))
    names = ("auc", "within", "rho")
    numbers = [{name: float(value) for name, value in zip(names, values)} for values in found]
    ranges = [{f"{name}_interval": interval(values) for name, values in zip(names, more)} for more in drawn]
    return [number | more for number, more in zip(numbers, ranges)]


# ---------------------------------------------------------------- additive-noise model (Hoyer et al., NeurIPS 2008)
def smooth(x, y):
    """The mean of y given x as a cubic smoothing spline, stiffness by generalised cross-validation, (n,) x2 -> (n,)."""
    at, inverse, count = np.unique(x, return_inverse=True, return_counts=True)  # ties become one weighted point
    mean = np.bincount(inverse, y) / count
    if len(at) < LEAST:
        raise UserError(f"the additive-noise model needs {LEAST} different values, not {len(at)}; take more steps")
    return interpolate.make_smoothing_spline(at, mean, w=count.astype(float))(at)[inverse]


def centred_kernel(x):
    """RBF kernel of (n,) with the median distance as bandwidth, and the same centred, (n, n) x2."""
    distance = spatial.distance.pdist(x[:, None])
    width = np.median(distance[distance > 0]) if (distance > 0).any() else 1.0
    K = np.exp(-(spatial.distance.squareform(distance) ** 2) / (2 * width**2))
    return K, K - K.mean(0) - K.mean(1)[:, None] + K.mean()


def hsic(x, y):
    """Hilbert-Schmidt independence of (n,) and (n,): the criterion scaled to [0, 1], and p of "independent".

    p by the gamma approximation (Gretton et al., NeurIPS 2007), which takes the n pairs as independent of each other.
    """
    n = len(x)
    (K, Kc), (L, Lc) = centred_kernel(x), centred_kernel(y)
    statistic = (Kc * Lc).sum() / n
    scaled = n * statistic / math.sqrt((Kc**2).sum() * (Lc**2).sum())
    square = (Kc * Lc / 6) ** 2
    variance = (square.sum() - np.trace(square)) / n / (n - 1)
    variance *= 72 * (n - 4) * (n - 5) / (n * (n - 1) * (n - 2) * (n - 3))
    off = lambda M: (M.sum() - n) / (n * (n - 1))  # mean off the diagonal, which is 1
    mean = (1 + off(K) * off(L) - off(K) - off(L)) / n
    return float(scaled), float(stats.gamma.sf(statistic, mean**2 / variance, scale=n * variance / mean))


def additive_noise(cause, effect):
    """effect = f(cause) + residual: how far is the residual from independent of the cause? Low HSIC: the model fits.

    (n,) x2 -> dict hsic in [0, 1], p, and the standardised cause, effect and fit for a picture, at most MOST points.
    UserError below LEAST + 1 points, or when one of them does not vary.
    """
    sound = np.flatnonzero(np.isfinite(cause) & np.isfinite(effect))
    sound = sound[np.linspace(0, len(sound) - 1, min(len(sound), MOST)).astype(int)] if len(sound) else sound
    if len(sound) <= LEAST or np.ptp(cause[sound]) == 0 or np.ptp(effect[sound]) == 0:
        raise UserError(f"the additive-noise model needs over {LEAST} points that differ, not {len(sound)}")
    x, y = (stats.zscore(np.asarray(v, float)[sound]) for v in (cause, effect))
    fit = smooth(x, y)
    score, p = hsic(x, y - fit)
    return {"hsic": score, "p": p, "n": len(x), "cause": x, "effect": y, "fit": fit}


def noise_gap(x, y, seed):
    """HSIC of the model x -> y less that of y -> x, (n,) x2: below 0 x is the better cause; and its 95 % interval.

    The interval is over points, from GAP_RESAMPLES bootstrap samples of at most GAP_POINTS of them.
    """
    sound = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    gap = lambda i: additive_noise(x[i], y[i])["hsic"] - additive_noise(y[i], x[i])["hsic"]
    rng, size = np.random.default_rng(seed), min(len(sound), GAP_POINTS)
    drawn = [gap(rng.choice(sound, size)) for _ in range(GAP_RESAMPLES)]
    return float(gap(sound)), tuple(float(v) for v in np.quantile(drawn, (0.025, 0.975)))
