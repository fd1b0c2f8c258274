"""An adaptive share beta: how many samples keep their self-supervised loss follows from the batch's scores themselves.

    lam = lowest(sk, gap(sk))                 # (B,) True where the self-supervised loss stays
    lam = lowest(sk, agree(sk, again))        # again: a second draw of the scores, of other noise on the same clouds

Shares are tensors in double precision, so that nothing waits for a GPU. Neither rule is the paper's.
"""

import torch

LOW, HIGH = 0.5, 0.9  # no share leaves these, unless other bounds are given


def gap(score, low=LOW, high=HIGH):
    """The share below the largest gap between neighbouring sorted scores, (B,) -> ().

    Keeps at least round(low B) and at most round(high B), and never none or all. Of equal gaps the last counts, so that
    a batch without any keeps the most. ValueError for fewer than two scores, which have no gap.
    """
    n = len(score)
    if n < 2:
        raise ValueError(f"gap: takes two scores or more, not {n}")
    most = min(round(max(low, high) * n), n - 1)
    least = max(min(round(low * n), most), 1)
    gaps = score.sort().values.diff()[least - 1 : most]  # the first lies above `least` scores
    return (most - gaps.flip(0).argmax()).double() / n


def ranks(score):
    """How many scores are lower, and half of those that are equal, itself too, (B,) -> (B,): ties share a rank."""
    return (score[:, None] > score).sum(1).double() + (score[:, None] == score).sum(1) / 2


def rank_agreement(one, two):
    """Spearman's rank correlation of two draws, (B,), (B,) -> () in [-1, 1]; 0 where all scores of a draw are equal."""
    a, b = (ranks(score) - len(score) / 2 for score in (one, two))  # half of B is the mean rank
    size = (a.square().sum() * b.square().sum()).sqrt()
    return torch.where(size > 0, (a * b).sum() / size, 0.0)


def agree(one, two, low=LOW, high=HIGH):
    """The less two draws agree on the order of the scores, the more is kept: (B,), (B,) -> ().

    low at full agreement, high at none or at a reversed order, and a straight line between; low where it is the higher.
    """
    return low + max(high - low, 0) * (1 - rank_agreement(one, two).clamp_min(0))


def lowest(score, share):
    """saliency.select for a share that is a tensor: the share with the lowest score, ties at the threshold dropped.

    (B,), () -> (B,) bool.
    """
    n = (len(score) * share + 0.5 + 1e-9).floor().long()  # halves up; 45 * .7 is a half but for its rounding
    tau = score.sort().values.gather(0, n.clamp_max(len(score) - 1).view(1))  # the first score that is not kept
    return (score < tau) | (n >= len(score))


def rule(select, again=None):
    """What saliency.select takes as `keep`, by the name that --select gives: f(score (B,), beta) -> (B,) bool.

    beta is the least share. again() -> (B,) is the second draw, which agree alone asks for. Of other names the name.
    """
    return {
        "gap": lambda score, beta: lowest(score, gap(score, beta)),
        "agree": lambda score, beta: lowest(score, agree(score, again(), beta)),
    }.get(select, select)
