"""Studies over runs: label-free validators, a known share of wrong pseudo-labels, claims pooled over seeds."""

import csv
import json

import numpy as np
import pytest
import torch

import eval as evaluation
import stage1_ssl
from engine.validators import VALIDATORS
from fixtures import command, refusal
from paper import __main__ as paper
from paper import claims, noise, validators
from test_figures import drawn
from test_paper import TINY, quick, serve, shapes  # noqa: F401 - fixtures
from test_tables import result


def write(folder, curve, **more):
    """A run's folder with a result of one stage and this curve: rows of step, source, target and one validator."""
    whole = result(stage=1, **more)
    names = ("step", "source", "target", "infomax")
    whole["stage1"]["curve"] = [
        dict.fromkeys(VALIDATORS, 0.0) | dict(zip(names, row)) | {"snd": -row[2]} for row in curve
    ]
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps(whole))
    return folder


# ---------------------------------------------------------------- validators
def test_validators_by_hand(tmp_path, capsys):
    """InfoMax finds the best moment, source validation loses 20 points, SND is upside down; the untrained is left out.

    Step 0 has the best of everything and counts nowhere.
    """
    step0 = (0, 1.0, 1.0, 9.0)
    good = write(tmp_path / "a", [step0, (10, 0.8, 0.5, 0.1), (20, 0.7, 0.7, 0.3), (30, 0.81, 0.6, 0.2)], seed=0)
    also = write(tmp_path / "b", [step0, (10, 0.9, 0.4, 0.1), (20, 0.8, 0.6, 0.3), (30, 0.85, 0.5, 0.2)], seed=1)
    poor = write(tmp_path / "c", [step0, (10, 0.1, 0.9, 0.0), (20, 0.1, 0.1, 0.3)], seed=2)
    for folder, end in ((good, 0.81), (also, 0.85), (poor, 0.1)):
        assert evaluation.records(evaluation.read_result(folder))[0]["last_source"] == end
    command(paper.main, "validators", good, also, poor, "--out", tmp_path / "v")
    with open(tmp_path / "v.csv") as file:
        rows = [row for row in csv.DictReader(file)]
    kept = [row for row in rows if row["trained"] == "True"]
    assert len(rows) == 3 * len(validators.CRITERIA) and len(kept) == 2 * len(validators.CRITERIA)
    lost = {name: [float(r["lost"]) for r in kept if r["criterion"] == name] for name in validators.CRITERIA}
    assert lost["infomax"] == [0, 0] and lost["last"] == pytest.approx([10, 10])
    assert lost["source"] == pytest.approx([10, 20]) and lost["snd"] == pytest.approx([20, 20])
    rho = {r["criterion"]: float(r["rho"] or "nan") for r in kept}
    assert rho["infomax"] == 1 and rho["snd"] == -1 and np.isnan(rho["bnm"])  # a constant has none
    text = capsys.readouterr().out
    assert "| source validation | 15.0 ± 5.0 | 15.0 |" in text and "1 not trained and left out" in text
    assert "Least lost without labels: infomax" in text
    assert "passes the gate" in refusal(lambda: command(paper.main, "validators", poor, "--out", tmp_path / "w"))


# ---------------------------------------------------------------- noise
def test_the_share_of_wrong_labels_is_exact_and_nested():
    """floor(rate n + 1/2) are wrong, none by chance right; those of a lower rate stay wrong; another seed, others."""
    truth = torch.arange(37) % 5
    few, many = noise.noisy(truth, 0.2, 5, 0), noise.noisy(truth, 0.6, 5, 0)
    assert (few != truth).sum() == 7 and (many != truth).sum() == 22 and torch.equal(noise.noisy(truth, 0, 5, 0), truth)
    assert ((many != truth) | (few == truth)).all() and (few == many)[few != truth].all()
    assert not torch.equal(few, noise.noisy(truth, 0.2, 5, 1)) and 0 <= many.min() and many.max() < 5


def test_noise_groups_and_trains(shapes, quick, tmp_path, monkeypatch, capsys):  # noqa: F811
    """At a rate of one half about half of the pseudo-labels are wrong, and all rates have the same sources."""
    serve(shapes, monkeypatch)
    monkeypatch.setattr(noise, "BATCHES", 6)
    run = tmp_path / "run"
    command(stage1_ssl.main, *TINY, "--ssl", "defrec", "--out", run)
    seen, scores = [], noise.scores_at
    monkeypatch.setattr(noise, "scores_at", lambda *live: seen.append(scores(*live)) or seen[-1])
    monkeypatch.setattr(noise, "GATE", 0)
    argv = "noise", "--init", run / "stage1.pt", "--rates", 0, 0.5, "--train", "--steps", 2, "--out", tmp_path / "noise"
    command(paper.main, *argv)
    groups = [[row["group"] for row in rows] for rows in seen]
    assert set(groups[0]) == {"source", "right"} and set(groups[1]) == set(noise.GROUPS)
    assert len(groups[1]) == 6 * 4 and [g == "source" for g in groups[0]] == [g == "source" for g in groups[1]]
    assert {row["shift"] for row in seen[1] if row["group"] == "source"} == {0}
    assert all(row["shift"] for row in seen[1] if row["group"] != "source")
    rows, _ = drawn(tmp_path / "noise")
    assert [row["rate"] for row in rows] == ["0", "0.5"] and all(row["target, all"] for row in rows)
    monkeypatch.setattr(noise, "GATE", 1.1)
    capsys.readouterr()
    command(paper.main, *argv)
    assert "low not trained" in capsys.readouterr().out


# ---------------------------------------------------------------- claims over seeds
def test_claims_pool_seeds_and_leave_out_the_untrained(tmp_path, capsys):
    """Mean ± standard error over two runs by hand; a third, untrained, is named and nowhere in the means."""
    areas = {"low": 0.4, "high": 0.6, "poor": 0.9}
    for seed, (name, area) in enumerate(areas.items()):
        scores = [{"score": s, "step": "", "auc": area, "within": None} for s in claims.PREDICTORS]
        moments = [dict.fromkeys(claims.SHARES, 0.25), dict.fromkeys(claims.SHARES, 0.75)]
        found = {"scores": scores, "moments": moments, "trained": name != "poor", "source_accuracy": 0.85}
        record = {"figure": "persample", "args": {"task": "M_S", "ssl": "defrec"}, "seed": seed, "n": 9}
        record |= {"data": "built-in shapes", "commit": "abc", "statistics": found}
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    (tmp_path / "other.json").write_text('{"figure": "fig6"}')
    command(paper.main, "claims", *tmp_path.glob("*.json"), "--out", tmp_path / "claims")
    text = capsys.readouterr().out
    assert "| AUC / within classes: skewness, train | 0.50 ± 0.10 |" in text and "M_S defrec, seed 0 1" in text
    assert "left out: persample M_S defrec seed 2" in text and "| cosine below 0 | 0.50 ± 0.00 |" in text
    assert "no trained" in refusal(
        lambda: command(paper.main, "claims", tmp_path / "poor.json", "--out", tmp_path / "c")
    )
