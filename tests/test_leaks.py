"""extras/leaks.py: a small part of `make leaks`, and that it sees a planted leak of each kind."""

import numpy as np
import pytest
import torch

import data
import ssl_tasks
from extras import leaks
from fixtures import blobs, command, refusal


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Two clouds a class, as fast as they can be had."""

    def few(keys, seed):
        rng, y, found = np.random.default_rng(seed), np.repeat(np.arange(10), 2), {}
        for key in keys:
            for split in data.dataset_of(key).SPLITS:
                labels = np.tile(np.arange(64) // 8, (20, 1)) if data.dataset_of(key).PER_POINT else y
                found[key, split] = blobs(rng, y, 64), labels, blobs(rng, y, 64)
        return found

    monkeypatch.setattr(leaks, "few", few)


def setting(name):
    return next(each for each in leaks.settings() if each.name == name)


@pytest.mark.parametrize(
    "name, changes",
    [("selfdist", leaks.CHANGES), ("bodies, defrec", leaks.CHANGES[:1]), ("own folders", leaks.CHANGES[1:3])],
)
def test_what_must_stay_unseen_changes_nothing(name, changes, monkeypatch):
    """Both stages: no tensor differs, but where the source's labels do."""
    monkeypatch.setattr(leaks, "CHANGES", changes)
    rows = leaks.check(setting(name), 0)
    assert len(rows) == 2 * len(changes) and all(row["tensors"] > 30 for row in rows)
    assert all(row["holds"] and (row["differing"] > 0) == (row["changed"] == leaks.CONTROL) for row in rows), rows


class Peeks(ssl_tasks.NoTask):
    """A planted leak: its loss hangs on what `look` sees of the target."""

    look = None

    def forward(self, model, view, features, generator):
        return self.encode(model, view.x)[1].mean(1) * self.look(data.load_domain("shapes", "SC"))


@pytest.mark.parametrize(
    "look, seen",
    [
        (lambda tgt: float((tgt.train_labels * torch.arange(20)).sum()), leaks.LABELS),
        (lambda tgt: float(tgt.test[0, 0, 0]), leaks.TEST),
    ],
)
def test_a_planted_leak_is_seen(look, seen, monkeypatch, tmp_path):
    """A task that reads labels, or looks at clouds for testing: one line with the setting, and the table is written."""
    monkeypatch.setattr(Peeks, "look", staticmethod(look))
    monkeypatch.setitem(ssl_tasks.TASKS, "none", Peeks)
    monkeypatch.setattr(leaks, "CHANGES", (seen,))
    text = refusal(lambda: command(leaks.main, "--only", "none", "--out", tmp_path / "leaks"))
    assert "none, stage 1" in text and seen in text and "tensors differ" in text
    assert "| none |" in (tmp_path / "leaks.md").read_text()


def test_a_comparison_that_cannot_fail_is_none(monkeypatch):
    """Where not even the source's labels change the weights, the control does not hold."""
    monkeypatch.setattr(leaks, "CHANGES", (leaks.CONTROL,))
    monkeypatch.setattr(leaks, "changed", lambda clouds, *_: {k: (x, y) for k, (x, y, _) in clouds.items()})
    assert not any(row["holds"] for row in leaks.check(setting("none"), 0))


def test_nothing_that_can_be_chosen_is_left_out():
    """Every task, alone and with PCM, score, selection and way to join the losses has its line."""
    names = {each.name for each in leaks.settings()}
    asked = {f"{task}{more}" for task in ssl_tasks.TASKS for more in ("", "+pcm")}
    asked |= {f"--score {name}" for name in leaks.SCORES} - {"--score skewness"} | {"--mtl cgdm", "own .h5"}
    asked |= {f"--select {name}" for name in leaks.SELECTS} - {"--select low"}
    assert asked <= names and len(names) == len(leaks.settings())
