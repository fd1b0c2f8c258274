"""eval.py against hand-made predictions, tables over seeds, and the commands that users type."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import analysis
import common
import data
import eval as evaluation

ROOT = Path(__file__).resolve().parent.parent
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def test_confusion_and_accuracies_by_hand():
    """Rows are the truth; a class that is absent from the truth does not count in the mean."""
    truth, predicted = np.array([0, 0, 0, 1, 3]), np.array([0, 0, 1, 1, 0])
    matrix = evaluation.confusion(truth, predicted, 4)
    assert matrix.tolist() == [[2, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    acc, mean, per_class = evaluation.accuracies(matrix)
    assert acc == 3 / 5 and mean == pytest.approx((2 / 3 + 1 + 0) / 3) and per_class == [2 / 3, 1.0, None, 0.0]


def test_the_three_columns_pick_their_moments(tmp_path):
    """last, first best on the source, best on the target: each moment by hand."""
    src, tgt = np.array([0, 1, 2, 3]), np.array([1, 1, 2, 2])
    source = np.array([[0, 0, 0, 0], [0, 1, 2, 0], [0, 1, 2, 0]], np.uint8)  # 1/4, 3/4, 3/4
    target = np.array([[1, 1, 2, 2], [1, 1, 2, 0], [0, 0, 0, 0]], np.uint8)  # 1, 3/4, 0
    np.savez(tmp_path / "p.npz", step=[10, 20, 30], source=source, target=target)
    result = evaluation.stage_result(tmp_path / "p.npz", src, tgt)
    assert {c: (result[c]["step"], result[c]["acc"]) for c in evaluation.COLUMNS} == {
        "last": (30, 0),
        "source_val": (20, 0.75),
        "oracle": (10, 1),
    }
    assert (
        result["per_class"]["bed"] == 1
        and result["per_class"]["bookshelf"] == 0.5
        and result["per_class"]["sofa"] is None
    )
    assert [p["target"] for p in result["curve"]] == [1, 0.75, 0] and np.sum(result["confusion"]) == 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Both stages of two seeds and one base run on the built-in shapes, as a user runs them."""
    root = tmp_path_factory.mktemp("runs")
    tiny = (
        "--backbone pointnet --points 24 --batch-size 4 --steps 2 --eval-every 1 --device cpu --data shapes --task M_SC"
    )
    for name, more in (("low0", ""), ("low1", "--seed 1"), ("all0", "--select all")):
        subprocess.run(
            [sys.executable, ROOT / "stage1_ssl.py", *tiny.split(), *more.split(), "--out", root / name],
            check=True,
            env=ENV,
            capture_output=True,
        )
    subprocess.run(
        [sys.executable, ROOT / "stage2_pseudo.py", "--init", root / "low0" / "stage1.pt", "--gcn-iters", "1"],
        check=True,
        env=ENV,
        capture_output=True,
    )
    return root


def test_result_json_and_its_row(folder):
    """All keys of the protocol, accuracies as recomputed from the predictions, and a row with the folder."""
    out = subprocess.run(
        [sys.executable, ROOT / "eval.py", "--run", folder / "low0"],
        check=True,
        env=ENV,
        capture_output=True,
        text=True,
    ).stdout
    result = json.loads((folder / "low0" / "result.json").read_text())
    keys = "task backbone ssl pcm select beta alpha measure seed steps data device commit versions seconds n_test stage1 stage2".split()
    assert set(keys) <= result.keys() and result["data"]["name"] == "built-in shapes" and result["measure"] == "train"
    truth = torch.as_tensor(data.load_domain("shapes", "SC").test_labels).numpy()
    preds = np.load(folder / "low0" / "preds2.npz")
    assert preds["target"].dtype == np.uint8 and result["n_test"] == len(truth)
    assert result["stage2"]["last"]["acc"] == pytest.approx((preds["target"][-1] == truth).mean())
    assert "M_SC pointnet selfdist low 0.7" in out and out.strip().endswith(str(folder / "low0"))
    assert (folder / "low0" / "confusion.png").stat().st_size > 10_000


def test_table_pools_seeds_and_names_its_data(folder, tmp_path):
    """Mean and sample std over seeds, the data's name and fingerprint, and a csv with a line for each run and stage."""
    for name in ("low0", "low1", "all0"):
        results = evaluation.evaluate(folder / name)
    argv = ["--table", tmp_path / "t", folder / "low0", folder / "low1", folder / "all0"]
    subprocess.run([sys.executable, ROOT / "eval.py", *argv], check=True, env=ENV, capture_output=True)
    text = (tmp_path / "t.md").read_text()
    values = [
        100 * json.loads((folder / n / "result.json").read_text())["stage1"]["last"]["acc"] for n in ("low0", "low1")
    ]
    assert f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}" in text and "| 0 1 |" in text
    assert "built-in shapes" in text and results["data"]["fingerprint"][:12] in text and results["commit"] in text
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 1 + 4 and (tmp_path / "t.png").stat().st_size > 10_000


def test_the_paper_column_quotes_the_table():
    """M_S with Self-dist GCN + SM-DSB is printed as 83.6; controls have no number in the paper."""
    row = dict.fromkeys(evaluation.FLAGS) | dict(task="M_S", backbone="dgcnn", ssl="selfdist", select="low")
    row |= dict(beta=0.7, alpha=1)
    assert evaluation.paper_number(row) == "83.6"
    assert evaluation.paper_number(row | {"select": "all"}) == "83.9"
    assert evaluation.paper_number(row | {"select": "random"}) == "" == evaluation.paper_number(row | {"oracle": True})


def test_eval_errors(folder, tmp_path):
    """No run, an unfinished one, other data: one line each, exit code 2."""
    done = subprocess.run(
        [sys.executable, ROOT / "eval.py", "--run", tmp_path], capture_output=True, text=True, env=ENV
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "config.json" in done.stderr
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(common.UserError, match="no stage is finished"):
        evaluation.evaluate(tmp_path)
    config = json.loads((folder / "all0" / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({"stage1": config["stage1"] | {"data": {"name": "x", "fingerprint": "0"}}})
    )
    (tmp_path / "stage1.pt").write_text("")
    with pytest.raises(common.UserError, match="not the clouds"):
        evaluation.evaluate(tmp_path)


# ---------------------------------------------------------------- what the README says
def test_the_readme_snippet_runs():
    """SM-DSB in your own trainer: the block is executed as printed."""
    text = (ROOT / "README.md").read_text()
    block = re.search(r"```python\n(.*?)```", text, re.S).group(1)
    torch.manual_seed(0)
    scope = {}
    exec(block, scope)
    assert scope["lam"].sum() == 11 and all(p.grad is not None for p in scope["model"].parameters())


def test_readme_commands_and_files_exist():
    """Every make target, script and file:function that the README names is there."""
    text = (ROOT / "README.md").read_text()
    rules = subprocess.run(["make", "-qpR", "help"], cwd=ROOT, capture_output=True, text=True).stdout
    targets = set(re.findall(r"(?:^|`)(?:PY=python )?make ([A-Za-z_]\w*)", text, re.M))
    assert {"demo", "M_S", "all", "table", "test", "bench", "data"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", rules, re.M), target
    for file, function in re.findall(r"`(\w+\.py):(\w+)`", text):
        assert re.search(rf"^(def|class) {function}\b", (ROOT / file).read_text(), re.M), (file, function)
    for script, flags in re.findall(r"^python (\w+\.py) (.*)$", text, re.M):
        usage = subprocess.run(
            [sys.executable, ROOT / script, "--help"], capture_output=True, text=True, env=ENV
        ).stdout
        for flag in (w for w in shlex.split(flags, comments=True) if w.startswith("--")):
            assert flag in usage, (script, flag)


def test_every_setting_has_a_folder_of_its_own():
    """make's folder differs when any flag does."""

    def folder(*more):
        out = subprocess.run(
            ["make", "-n", "PY=python", "M_SC", "DATA=shapes", *more], cwd=ROOT, capture_output=True, text=True
        ).stdout
        return re.search(r"eval.py --run (\S+)", out).group(1)

    settings = [
        [],
        ["SEED=1"],
        ["BETA=0.3"],
        ["SELECT=high"],
        ["SSL=defrec"],
        ["BACKBONE=pointnet"],
        ["STEPS=10"],
        ["ARGS=--points 512"],
        ["ARGS2=--gcn-iters 0"],
    ]
    folders = [folder(*s) for s in settings]
    assert folders[0] == "runs/M_SC-dgcnn-selfdist-low-b0.7-s0-shapes" and len(set(folders)) == len(folders)


# ---------------------------------------------------------------- analysis
def test_agreement_of_scores():
    """A score agrees with itself wholly, with its negative not at all."""
    a = torch.arange(10.0)
    assert analysis.agreement(a, a, 0.7) == (pytest.approx(1), 1.0)
    assert analysis.agreement(a, -a, 0.3) == (pytest.approx(-1), 0.0)


def test_differences_pair_runs_by_seed():
    """low minus random, all and high by hand; a comparator and an oracle have no part in it."""
    row = dict(task="M_S", backbone="pointnet", ssl="defrec", pcm=False, beta=0.7, alpha=1.0, mtl="sum", oracle=False)

    def run(select, seed, acc, **more):
        flags = {key: None for key in evaluation.FLAGS} | row | {"select": select, "seed": seed} | more
        return {"data": {"fingerprint": "f"}, "stage1": {"source_val": {"acc": acc}, "flags": flags}, "stage2": None}

    runs = [run("low", 0, 0.5), run("low", 1, 0.6), run("random", 1, 0.5), run("random", 0, 0.3), run("all", 1, 0.7)]
    runs += [run("all", 0, 0.9, mtl="pcgrad"), run("high", 5, 0.1), run("all", 0, 0.9, oracle=True)]
    lines = evaluation.differences(runs)
    assert "| M_S pointnet defrec low 0.7, stage 1 | -10.0 | +15.0 ± 7.1 |  |" in lines
    assert "| all of stage 1, ± standard error (pairs) |  | +15.0 ± 5.0 (2) |  |" in lines
    assert evaluation.differences(runs[:2]) == []

    stages = [run("low", 0, 0.5), run("all", 0, 0.4)]
    for each in stages:
        each["stage2"] = each["stage1"]
    lines = evaluation.differences(stages)
    assert [line.count("+10.0") for line in lines] == [0, 0, 1, 1, 0]  # two stages of a run are not two pairs
    steep = evaluation.differences([run("low", 0, 0.5, alpha=2.0), run("all", 0, 0.4)])
    assert steep[2] == "| M_S pointnet defrec low 0.7 alpha 2, stage 1 | +10.0 |  |  |"

    # a beta and a measuring mode have a row of their own, beside the controls that share them
    knobs = [run(s, 0, acc, beta=b) for s, b, acc in (("low", 0.3, 0.2), ("random", 0.3, 0.1), ("random", 0.7, 0.4))]
    modes = [run(s, 0, acc, measure=m) for s, m, acc in (("low", "eval", 0.8), ("high", "eval", 0.6), ("high", "x", 0))]
    lines = evaluation.differences([*knobs, *modes, run("low", 0, 0.5), run("all", 0, 0.6, beta=0.9)])
    assert lines[2:5] == [
        "| M_S pointnet defrec low 0.3, stage 1 | -40.0 | +10.0 |  |",
        "| M_S pointnet defrec low 0.7 measured in eval mode, stage 1 | +20.0 | +40.0 | +20.0 |",
        "| M_S pointnet defrec low 0.7, stage 1 | -10.0 | +10.0 |  |",
    ]
