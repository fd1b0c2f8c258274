"""extras/learns.py: the short form of `make trains`, and that its verdict can fail."""

import pytest

import data
from extras import learns
from fixtures import some


@pytest.fixture(scope="module")
def few():
    """Domains of the built-in shapes to take a few clouds from."""
    return {key: data.load_domain("shapes", key) for key in ("M", "S")}


@pytest.mark.parametrize("ssl", learns.TASKS)
@pytest.mark.parametrize("backbone, select", [("pointnet", "all"), ("pointnet", "low"), ("dgcnn", "low")])
def test_every_task_learns(select, backbone, ssl, few, monkeypatch):
    """On sixteen built-in shapes: L_c falls, all is finite, the kept count is as asked."""
    monkeypatch.setattr(data, "load_domain", lambda root, key, labels=True: some(few[key], 16, labels))
    # under self-distillation's distortion a classifier needs hundreds of steps
    monkeypatch.setattr(data, "elastic", lambda points, generator: points)
    flags = dict(task="M_S", data="shapes", ssl=ssl, backbone=backbone, select=select, points=32, batch_size=32, seed=0)
    rows, finite, name = learns.short_run({**flags, "steps": 12, "device": "cpu"})
    found = learns.verdict(rows, finite, learns.asked_for(select, 0.7, 16))
    assert found["ok"], found
    assert name == "built-in shapes" and len(rows) == len(finite) == 12


def test_the_verdict_can_fail():
    """A rising loss, a wrong count or a gradient that is not finite fails a run."""
    row = lambda cls, kept=6: {"cls": cls, "ssl_src": 1.0, "ssl_tgt": 1.0, "kept": kept}
    good = [row(2.0), row(1.5), row(1.0)]
    assert learns.verdict(good, [True], 6)["ok"]
    assert not learns.verdict(good[::-1], [True], 6)["ok"]
    assert not learns.verdict(good, [True, False], 6)["ok"]
    assert not learns.verdict(good, [True], 8)["ok"]
    assert not learns.verdict([row(2.0) | {"ssl_src": float("nan")}, *good[1:]], [True], 6)["ok"]
