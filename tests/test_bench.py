"""extras/bench.py: what it compares with does the same, and each of its numbers comes from a whole step."""

import pytest
import torch

import models
import ssl_tasks
from engine.geometry import masked_chamfer
from extras import bench


def test_the_plain_way_is_the_same_loss():
    """All differences or the nearest alone, an empty mask included."""
    g = torch.Generator().manual_seed(0)
    p, q = torch.randn(2, 5, 60, 3, generator=g)
    mask = torch.rand(5, 60, generator=g) < 0.3
    mask[2] = False
    assert torch.allclose(bench.plain_chamfer(p, q, mask), masked_chamfer(p, q, mask), atol=1e-6)


def test_the_plain_way_deforms_one_full_voxel():
    """As ssl_tasks.deform: all points of one voxel that has enough, and no other, move to its centre."""
    x = bench.clouds(4, 2000, "cpu")
    out, hole = bench.plain_deform(x, torch.Generator().manual_seed(0))
    index = ssl_tasks.voxel(x)
    for b in range(4):
        (v,) = index[b][hole[b]].unique()
        assert hole[b].sum() == (index[b] == v).sum() >= 40 and torch.equal(out[b, ~hole[b]], x[b, ~hole[b]])
        centre = torch.tensor([v // 9 - 1, v // 3 % 3 - 1, v % 3 - 1]) * 2 / 3
        assert (out[b, hole[b]] - centre).norm(dim=1).max() < 0.25


def test_the_plain_step_leaves_the_models_as_they_were():
    bench.plain_step("pointnet", 4, "cpu")()
    assert not bench.models.PLAIN


def test_the_floor_counts_the_products(monkeypatch):
    """At a rate of one operation a second it is their number: some for the weights and as many for each cloud."""
    monkeypatch.setattr(bench, "matmul_rate", lambda device: 1)
    floors = []
    for B in (2, 4, 8):
        monkeypatch.setattr(bench, "clouds", lambda *_, B=B: torch.randn(B, 64, 3))
        floors.append(bench.encoder_cost("pointnet", "ours", "cpu", 1)[2])
    assert floors[0] > 2e7 and floors[2] - floors[1] == 2 * (floors[1] - floors[0])


def test_the_other_library_is_given_the_same_layer():
    """Where it is installed: the same result from the same weights."""
    pytest.importorskip("torch_geometric")
    layer, x = models.EdgeConv(8, 16), torch.randn(2, 30, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(bench.by_pyg(layer)(x), layer(x), atol=1e-5)
