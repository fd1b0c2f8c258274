"""eval.py against hand-made predictions and on runs as users make them; the commands that the README prints."""

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

import data
import eval as evaluation
import stage1_ssl
import stage2_pseudo
from datasets import pointda
from engine.metrics import accuracies, confusion
from fixtures import command, make_pointda, refusal
from paper import __main__ as paper

ROOT = Path(__file__).resolve().parent.parent
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def test_confusion_and_accuracies_by_hand():
    """Rows are the truth; a class that is absent from the truth does not count in the mean."""
    truth, predicted = np.array([0, 0, 0, 1, 3]), np.array([0, 0, 1, 1, 0])
    matrix = confusion(truth, predicted, 4)
    assert matrix.tolist() == [[2, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    acc, mean, per_class = accuracies(matrix)
    assert acc == 3 / 5 and mean == pytest.approx((2 / 3 + 1 + 0) / 3) and per_class == [2 / 3, 1.0, None, 0.0]


def test_the_columns_pick_their_moments(tmp_path):
    """last, first best on the source, surest without labels, best on the target: each by hand; step 0 is not chosen."""
    src, tgt = np.array([0, 1, 2, 3]), np.array([1, 1, 2, 2])
    source = np.array([[0, 1, 2, 3], [0, 0, 0, 0], [0, 1, 2, 0], [0, 1, 2, 0]], np.uint8)  # 1, 1/4, 3/4, 3/4
    target = np.array([[1, 1, 2, 2], [1, 1, 2, 2], [1, 1, 2, 0], [0, 0, 0, 0]], np.uint8)  # 1, 1, 3/4, 0
    logits = np.array([9, 1, 2, 1])[:, None, None] * np.eye(10, dtype=np.float32)[target]
    clusters = np.zeros_like(target)
    np.savez(
        tmp_path / "p.npz",
        step=[0, 10, 20, 30],
        source=source,
        target=target,
        logits=logits,
        cluster=clusters,
        pseudo=target,
    )
    result = evaluation.stage_result(tmp_path / "p.npz", src, tgt, tgt, pointda.CLASSES)
    found = {column: (result[column]["step"], result[column]["acc"]) for column in evaluation.COLUMNS}
    assert found == {"last": (30, 0), "source_val": (20, 0.75), "label_free": (20, 0.75), "oracle": (10, 1)}
    scores = result["per_class"]
    assert (scores["bed"], scores["bookshelf"], scores["sofa"]) == (1, 0.5, None)
    assert [p["target"] for p in result["curve"]] == [p["pseudo"] for p in result["curve"]] == [
        1,
        1,
        0.75,
        0,
    ] and np.sum(result["confusion"]) == 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Both stages of two seeds, a base run and an oracle on a tiny data set."""
    root = make_pointda(tmp_path_factory.mktemp("runs") / "tiny")
    tiny = "--backbone pointnet --points 24 --batch-size 4 --steps 2 --eval-every 1 --device cpu --data".split()
    tiny.append(root)
    for name, more in (("low0", ""), ("low1", "--seed 1"), ("all0", "--select all"), ("bound", "--ssl none")):
        task = "SC_SC" if name == "bound" else "M_SC"
        command(stage1_ssl.main, *tiny, "--task", task, *more.split(), "--out", root / name)
    command(stage2_pseudo.main, "--init", root / "low0" / "stage1.pt", "--gcn-iters", 1)
    for name in ("low1", "all0", "bound"):
        evaluation.evaluate(root / name)
    return root


def test_result_json_and_its_row(folder):
    """All keys of the protocol, accuracies as recomputed from the predictions, and a row with the folder."""
    argv = [sys.executable, ROOT / "eval.py", "--run", folder / "low0"]
    out = subprocess.run(argv, check=True, env=ENV, capture_output=True, text=True).stdout
    result = json.loads((folder / "low0" / "result.json").read_text())
    keys = "task backbone ssl pcm select score beta alpha measure seed steps points data classes per_point n_test"
    assert set(f"{keys} device commit versions seconds stage1 stage2".split()) <= result.keys()
    assert result["data"]["name"] == "custom: tiny" and result["measure"] == "train" and not result["per_point"]
    assert result["classes"] == list(pointda.CLASSES) and not result["pcm"]
    truth = data.load_domain(folder, "SC").test_labels.numpy()
    preds = np.load(folder / "low0" / "preds2.npz")
    assert preds["target"].dtype == np.uint8 and result["n_test"] == len(truth)
    assert result["stage2"]["last"]["acc"] == pytest.approx((preds["target"][-1] == truth).mean())
    assert out.count("M_SC pointnet selfdist low 0.7") == 2 and out.strip().endswith(str(folder / "low0"))
    assert "custom: tiny" in out and f"n = {len(truth)} test clouds" in out and "paper" not in out.splitlines()[0]
    assert (folder / "low0" / "confusion.png").stat().st_size > 10_000


def test_an_oracle_says_so(folder):
    """SC_SC is one domain twice, and marked wherever its setting is named."""
    result = evaluation.read_result(folder / "bound")
    assert result["data"]["counts"].keys() == {"SC"} and result["stage2"] is None
    assert evaluation.name_of(result["stage1"]["flags"]) == "SC_SC pointnet none ORACLE: trained with target labels"


def test_a_table_pools_seeds_and_names_its_data(folder, tmp_path, capsys):
    """Mean and sample std over seeds, the data's name and fingerprint, and a csv with a line for each run and stage."""
    result = evaluation.evaluate(folder / "low0")
    command(paper.main, "table", *(folder / name for name in ("low0", "low1", "all0")), "--out", tmp_path / "t")
    text = (tmp_path / "t.md").read_text()
    results = [json.loads((folder / name / "result.json").read_text()) for name in ("low0", "low1")]
    values = [100 * r["stage1"]["last"]["acc"] for r in results]
    assert f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}" in text and "| 0 1 |" in text
    assert "custom: tiny" in text and result["data"]["fingerprint"][:12] in text and result["commit"] in text
    assert "paper" not in text and text in capsys.readouterr().out
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 1 + 4 and (tmp_path / "t.png").stat().st_size > 10_000


def test_eval_errors(folder, tmp_path):
    """No run, an unfinished one, other data: one line each, exit code 2."""
    argv = [sys.executable, ROOT / "eval.py", "--run", tmp_path]
    done = subprocess.run(argv, capture_output=True, text=True, env=ENV)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "config.json" in done.stderr
    (tmp_path / "config.json").write_text("{}")
    assert "no stage is finished" in refusal(lambda: evaluation.evaluate(tmp_path))
    config = json.loads((folder / "all0" / "config.json").read_text())["stage1"]
    other = {"stage1": config | {"data": {"name": "x", "fingerprint": "0"}}}
    (tmp_path / "config.json").write_text(json.dumps(other))
    (tmp_path / "stage1.pt").write_text("")
    assert "not the clouds" in refusal(lambda: evaluation.evaluate(tmp_path))


def test_every_setting_has_a_folder_of_its_own(capsys):
    """The folder that a run names itself differs when any flag does."""
    settings = """
        --seed 1 | --beta 0.3 | --select high | --ssl defrec | --ssl defrec+pcm | --backbone pointnet | --steps 10
        --points 512 | --score gini | --alpha 2 | --measure eval | --mtl cgdm | --batch-size 16 | --eval-every 7
        --task S_SC | --task SC_SC
    """
    folders = []
    for more in ("", *filter(str.strip, settings.replace("\n", "|").split("|")), "--print-out=--gcn-iters_0"):
        argv = "--task M_SC --data shapes --device cpu --print-out".split() + more.split()
        command(stage1_ssl.main, *argv)
        folders += capsys.readouterr().out.split()
    assert folders[0] == "runs/M_SC-dgcnn-selfdist-low-b0.7-s0-shapes" and len(folders) == 18 == len(set(folders))


# ---------------------------------------------------------------- what the README says
def test_the_readme_snippet_runs():
    """SM-DSB in your own trainer: the block is executed as printed."""
    text = (ROOT / "README.md").read_text()
    block = next(code for code in re.findall(r"```python\n(.*?)```", text, re.S) if "from saliency" in code)
    torch.manual_seed(0)
    scope = {}
    exec(block, scope)
    assert scope["lam"].sum() == 11 and all(p.grad is not None for p in scope["model"].parameters())


def test_readme_commands_and_files_exist():
    """Every make target, script and file:function that the README and docs/ name is there."""
    texts = {path: path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))}
    whole = "\n".join(texts.values())
    rules = subprocess.run(["make", "-qpR", "help"], cwd=ROOT, capture_output=True, text=True).stdout
    targets = set(re.findall(r"(?:^|`)(?:PY=python )?make ([A-Za-z_]\w*)", whole, re.M))
    assert {"demo", "M_S", "table1", "test", "fig1", "data"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", rules, re.M), target
    for file, function in re.findall(r"`([\w/]+\.py):(\w+)`", whole):
        assert re.search(rf"^(def|class) {function}\b", (ROOT / file).read_text(), re.M), (file, function)
    for path, text in texts.items():
        for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
            assert (path.parent / link).exists(), (path.name, link)
    flags = {}
    for script, words in re.findall(r"(?:^|`)python (-m [\w.]+(?: [a-z]\w*)?|[\w/]+\.py) ([^`\n]*)", whole, re.M):
        flags.setdefault(script, set()).update(w for w in shlex.split(words, comments=True) if w.startswith("--"))
    assert "stage1_ssl.py" in flags
    for script, named in flags.items():
        argv = [sys.executable, *script.split(), "--help"]
        usage = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, env=ENV).stdout
        assert all(flag.partition("=")[0] in usage for flag in named), (script, named)
