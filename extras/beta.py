"""An adaptive share: whom `--select gap` keeps follows from the batch's scores themselves. Not the paper's."""

MOST = 0.9  # of a batch are kept, unless --beta asks for more


def gap(score, least):
    """Keep what lies below the largest gap between neighbouring sorted scores, (B,) -> (B,) bool.

    Keeps at least the share `least` of the batch and at most MOST, and never all. Of equal gaps the last counts, so
    that a batch without any keeps the most. ValueError for fewer than two scores, which have no gap.
    """
    n = len(score)
    if n < 2:
        raise ValueError(f"gap: takes two scores or more, not {n}")
    most = min(round(max(least, MOST) * n), n - 1)
    fewest = max(min(round(least * n), most), 1)
    s = score.sort().values
    kept = most - s.diff()[fewest - 1 : most].flip(0).argmax()  # the first of these gaps lies above `fewest` scores
    return score < s.gather(0, kept.view(1))


RULES = {"gap": gap}


def rule(select):
    """What saliency.select takes as `keep`: a function of the scores and beta, or the name as it is."""
    return RULES.get(select, select)
