"""The adaptive share beta: both rules by hand and by a loop, and what they keep against saliency.select."""

from itertools import permutations

import pytest
import torch

from extras.beta import HIGH, LOW, agree, gap, lowest, rank_agreement, ranks, rule
from saliency import select


def scores(n, seed=0):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- gap
@pytest.mark.parametrize(
    "values, share",
    (
        ([0, 1, 2, 3, 4, 5, 9, 10, 11, 12], 0.6),  # the gap is between 5 and 9
        ([0, 9, 10, 11, 12, 13, 14, 16, 17, 18], 0.7),  # a larger one, below half of the batch, is out of bounds
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 99], 0.9),  # one outlier
        ([3, 3, 3, 3, 3, 3, 3, 3, 3, 3], 0.9),  # no gap at all
        ([0, 0, 0, 0, 0, 1, 1, 1, 1, 1], 0.5),
    ),
)
def test_gap_of_counted_examples(values, share):
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    assert gap(torch.tensor(values, dtype=torch.float)[order]).item() == pytest.approx(share)


@pytest.mark.parametrize("n", (2, 3, 5, 8, 32, 45))
def test_gap_is_the_loop_over_counts(n):
    """The count within bounds, the larger of equals, above which the next score is furthest away; lowest keeps it."""
    for seed in range(20):
        score = scores(n, seed)
        s = sorted(score.tolist())
        most = min(round(HIGH * n), n - 1)
        counts = range(max(1, min(round(LOW * n), most)), most + 1)
        best = max(counts, key=lambda k: (s[k] - s[k - 1], k))
        assert gap(score).item() == pytest.approx(best / n)
        assert lowest(score, gap(score)).tolist() == [x < s[best] for x in score.tolist()]


def test_gap_of_one_score():
    with pytest.raises(ValueError, match="two scores or more, not 1"):
        gap(torch.ones(1))


# ---------------------------------------------------------------- agree
def test_ranks_are_the_loop_with_ties_in_their_middle():
    s = [2.0, 5, 2, 1, 5, 5]
    expected = [sum(t < x for t in s) + sum(t == x for t in s) / 2 for x in s]
    assert ranks(torch.tensor(s)).tolist() == expected == [2, 4.5, 2, 0.5, 4.5, 4.5]


def test_rank_agreement_is_spearmans_formula():
    """1 - 6 sum d^2 / (B (B^2 - 1)) for every order; a monotone map changes nothing, equal scores say nothing."""
    one = torch.tensor([0.3, -1, 5, 2, 9])
    a = one.argsort().argsort()
    for order in permutations(range(5)):
        expected = 1 - 6 * (a - torch.tensor(order)).square().sum().item() / (5 * 24)
        assert rank_agreement(one, torch.tensor(order).float()).item() == pytest.approx(expected)
    assert rank_agreement(one, one.exp()).item() == pytest.approx(1)
    assert rank_agreement(one, torch.ones(5)) == rank_agreement(torch.ones(5), one) == 0


def test_agree_goes_from_high_to_low():
    one = scores(32)
    assert agree(one, one).item() == pytest.approx(LOW)
    assert agree(one, -one).item() == agree(one, torch.zeros(32)).item() == pytest.approx(HIGH)
    shares = [agree(one, one + noise * scores(32, 1)).item() for noise in (0, 0.3, 1, 3, 30)]
    assert shares == sorted(shares) and shares[0] < shares[2] < shares[4]
    half = one.clone()
    half[:16] = half[:16].flip(0)
    assert agree(one, half).item() == pytest.approx(HIGH - (HIGH - LOW) * max(0, rank_agreement(one, half).item()))


# ---------------------------------------------------------------- what is kept
@pytest.mark.parametrize("n", (1, 2, 7, 32, 45))
@pytest.mark.parametrize("share", (0.0, 0.3, 0.5, 0.7, 0.9, 1.0))
def test_lowest_is_select_of_a_number(n, share):
    """The same samples, halves and ties included."""
    for score in (scores(n), scores(n).round()):
        found = lowest(score, torch.tensor(share, dtype=torch.double))
        assert torch.equal(found, select(score, share))


@pytest.mark.parametrize("beta", (0.5, 0.7, 0.9, 1.0))
def test_a_rule_is_select_with_the_share_it_finds(beta):
    """beta is the least share; of gap, which must leave one out, all but one is the most."""
    one, two = scores(20), scores(20) + scores(20, 1)
    for name, share in (("gap", gap(one, beta)), ("agree", agree(one, two, beta))):
        found = rule(name, lambda: two)(one, beta)
        assert torch.equal(found, select(one, share.item()))
        assert min(20 * beta, 19) <= found.sum() <= max(20 * beta, 18)
    assert [rule(name) for name in ("low", "high", "all")] == ["low", "high", "all"]


def test_nothing_waits_for_a_device():
    score = torch.empty(8, device="meta")
    assert all(lowest(score, s).device.type == "meta" for s in (gap(score), agree(score, score)))
