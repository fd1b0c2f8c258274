"""--select gap: by hand, by a loop, on the meta device, and through the stage."""

import json

import pytest
import torch
from fixtures import command

import stage1_ssl
from extras.beta import MOST, gap, rule


@pytest.mark.parametrize(
    "values, kept",
    (
        ([0, 1, 2, 3, 4, 5, 9, 10, 11, 12], 6),  # the gap is between 5 and 9
        ([0, 9, 10, 11, 12, 13, 14, 16, 17, 18], 7),  # a larger one, below half of the batch, is out of bounds
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 99], 9),  # one outlier
        ([0, 0, 0, 0, 0, 1, 1, 1, 1, 1], 5),
    ),
)
def test_gap_of_counted_examples(values, kept):
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    score = torch.tensor(values, dtype=torch.float)[order]
    found = gap(score, 0.5)
    assert found.sum() == kept and score[found].max() < score[~found].min()


@pytest.mark.parametrize("n", (2, 3, 5, 8, 32, 45))
def test_gap_is_the_loop_over_counts(n):
    """The count within bounds, the larger of equals, above which the next score is furthest away."""
    for seed in range(20):
        score = torch.randn(n, generator=torch.Generator().manual_seed(seed))
        s = sorted(score.tolist())
        most = min(round(MOST * n), n - 1)
        counts = range(max(1, min(round(0.5 * n), most)), most + 1)
        best = max(counts, key=lambda k: (s[k] - s[k - 1], k))
        assert gap(score, 0.5).tolist() == [x < s[best] for x in score.tolist()]


def test_gap_of_one_score_and_of_equal_ones():
    with pytest.raises(ValueError, match="two scores or more, not 1"):
        gap(torch.ones(1), 0.5)
    assert not gap(torch.ones(8), 0.5).any()  # ties at the threshold are dropped, as in Eq. (7)


def test_only_gap_is_a_rule_and_it_waits_for_no_device():
    assert [rule(name) for name in ("low", "high", "all")] == ["low", "high", "all"] and rule("gap") is gap
    assert gap(torch.empty(8, device="meta"), 0.5).device.type == "meta"


def test_a_run_keeps_what_the_gap_says(tmp_path):
    """Between half and nine tenths of each batch, and not the same number in each."""
    where = "--task", "M_S", "--data", "shapes", "--backbone", "pointnet", "--ssl", "defrec", "--points", 24
    flags = "--batch-size", 20, "--steps", 6, "--device", "cpu", "--select", "gap", "--beta", 0.5
    command(stage1_ssl.main, *where, *flags, "--out", tmp_path / "run")
    kept = [json.loads(line)["kept"] for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert all(5 <= k <= 9 for k in kept) and len(set(kept)) > 1
