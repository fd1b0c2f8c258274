"""The three tables from made-up results: who lands in which cell, and that a cell nobody ran is empty."""

import json
import re
import subprocess
from pathlib import Path

import pytest

import data
import eval as evaluation
import tables
import trains
from common import UserError
from fixtures import command, refusal, some

ROOT = Path(__file__).resolve().parent.parent


def result(task="M_S", ssl="selfdist", select="low", seed=0, acc=0.5, stage=2, **more):
    """A result.json as far as the tables read it."""
    flags = dict.fromkeys(evaluation.FLAGS) | dict(
        task=task, backbone="dgcnn", ssl=ssl, pcm=False, select=select, beta=0.7, alpha=1.0, measure=None
    )
    flags |= dict(mtl="sum", oracle=False, batch_size=64, scratch=False, gcn_iters=1000, seed=seed, steps=10, points=64)
    flags |= more
    part = {column: {"acc": acc, "mean_acc": acc, "step": 10} for column in ("last", "source_val", "oracle")}
    part["flags"] = flags
    data = {"name": "built-in shapes", "fingerprint": "f" * 64, "counts": {}}
    whole = {key: flags[key] for key in ("task", "backbone", "ssl", "steps", "points")} | {"data": data, "n_test": 7}
    whole |= {"device": "CPU", "commit": "abc", "versions": {"torch": "2"}, "seconds": 60}
    return whole | {"stage1": part, "stage2": part if stage == 2 else None}


def cells(text):
    """(method, line) -> cells of the row; the method's name stands in its first row only."""
    rows, name = {}, ""
    for line in text.splitlines():
        if line.startswith("| ") and not line.startswith("| method"):
            first, kind, *values = (cell.strip() for cell in line.strip("|").split("|"))
            name = first or name
            rows[name, kind] = values
    return rows


def test_table_1_pools_seeds_beside_the_papers_number():
    """Self-dist + SM-DSB on M→S: 83.6 in the paper, 55.0 ± 7.1 over two seeds; all other cells are empty."""
    text = tables.table("1", [result(seed=0, acc=0.5), result(seed=1, acc=0.6)])
    found = cells(text)
    name = "Self-dist GCN + SM-DSB, stage 2"
    assert found[name, "paper"] == ["83.6", "63.0", "84.9", "59.5", "90.5", "81.7", "77.2"]
    for line in ("last", "**source val**", "oracle (a leak)"):
        assert found[name, line] == ["55.0 ± 7.1 (2)", "", "", "", "", "", ""]
    assert found["PointDAN", "paper"][0] == "83.9" and ("PointDAN", "last") not in found
    assert "| | n, test clouds | 7 |" in text
    assert "built-in shapes" in text and "Not PointDA-10" in text


def test_table_2_is_mean_iou_with_the_averages_of_the_rows():
    """57.1 and 58.2 where the paper prints 58.1 and 67.2; the oracle has the paper's row; steps follow the source."""
    seg = dict(task="seg_F_A", backbone="dgcnn-seg", ssl="defrec", stage=1)
    runs = [result(**seg), result(**seg | {"task": "seg_M_F", "steps": 20})]
    runs += [result(**seg | {"ssl": "none", "select": "all", "oracle": True})]
    for run in runs:
        for column in ("last", "source_val", "oracle"):
            run["stage1"][column] = {"miou": 0.25, "step": 10}
    text = tables.table("2", runs)
    found = cells(text)
    assert found["DefRec", "paper"][-1] == "57.1" and found["DefRec + SM-DSB, stage 1", "paper"][-1] == "58.2"
    row = dict(zip(tables.SEG_TASKS, found["DefRec + SM-DSB, stage 1", "last"]))
    assert row["seg_F_A"] == row["seg_M_F"] == "25.0 (1)" and list(row.values()).count("") == 10
    assert found["Oracle", "paper"][:2] == ["81.8", "80.9"] and found["Oracle", "last"][1] == "25.0 (1)"
    assert "mean IoU" in text and "67.2" in text and "accuracy" not in text.splitlines()[0]


def test_bodies_in_two_frames_do_not_meet_in_a_cell():
    """With and without --unit-sphere: refused in Table II, rows of two names in an ordinary table."""
    seg = dict(task="seg_F_A", backbone="dgcnn-seg", ssl="defrec", stage=1)
    raw, unit = runs = [result(**seg), result(**seg, seed=1, unit_sphere=True)]
    for run in runs:
        for column in ("last", "source_val", "oracle"):
            run["stage1"][column] = {"miou": 0.25, "step": 10}
    with pytest.raises(UserError, match="differ"):
        tables.table("2", runs)
    assert tables.table("2", [raw]) and tables.table("2", [unit])
    names = [line.split(" | ")[0] for line in evaluation.table(runs).splitlines()]
    assert "| seg_F_A dgcnn-seg defrec low 0.7" in names and "| seg_F_A dgcnn-seg defrec low 0.7 (unit sphere)" in names


def test_accuracy_and_iou_do_not_share_a_table(tmp_path):
    """Runs of both kinds: TABLE has the classes, TABLE_seg the bodies; of one kind there is TABLE alone."""
    seg = result(task="seg_F_A", backbone="dgcnn-seg", ssl="defrec", stage=1)
    folders = []
    for name, run in (("classes", result()), ("bodies", seg)):
        for part in (run["stage1"], run["stage2"]):
            if part:
                part["curve"] = [{"step": 10, "source": 0.5, "target": 0.5}]
                part |= {c: {"miou": 0.25, "step": 10} for c in evaluation.COLUMNS} if run is seg else {}
        folders.append(tmp_path / name)
        folders[-1].mkdir()
        (folders[-1] / "result.json").write_text(json.dumps(run))
    command(evaluation.main, "--table", tmp_path / "both", *folders)
    classes, bodies = (tmp_path / f"both{end}.md" for end in ("", "_seg"))
    assert "accuracy" in classes.read_text() and "seg_" not in classes.read_text()
    assert "mean IoU" in bodies.read_text() and "M_S " not in bodies.read_text()
    assert (tmp_path / "both_seg.csv").exists() and (tmp_path / "both_seg.png").exists()
    command(evaluation.main, "--table", tmp_path / "one", folders[1])
    assert "mean IoU" in (tmp_path / "one.md").read_text() and not (tmp_path / "one_seg.md").exists()


def test_a_result_of_another_version_is_one_line(tmp_path):
    """Without a flag that rows are told apart by, or of another form: the remedy is the command that writes it."""
    old = result()
    del old["stage2"]["flags"]["unit_sphere"]
    for content in (old, {}, []):
        (tmp_path / "result.json").write_text(json.dumps(content))
        for main, argv in ((evaluation.main, ["--table", tmp_path / "t"]), (tables.main, ["1"])):
            assert f"eval.py --run {tmp_path}" in refusal(lambda: command(main, *argv, tmp_path))


def test_controls_have_rows_of_their_own():
    """random, gradient surgery and no adaptation do not mix with the methods of the paper."""
    runs = [
        result(select="random"),
        result(select="all", mtl="pcgrad", acc=0.1),
        result(ssl="none", select="all", stage=1),
    ]
    found = cells(tables.table("1", runs))
    assert found["selfdist random 0.7, stage 2", "last"][0] == "50.0 (1)"
    assert found["selfdist all pcgrad, stage 2", "last"][0] == "10.0 (1)"
    assert found["No Adaptation", "paper"][0] == "83.3" and found["No Adaptation", "last"][0] == "50.0 (1)"


def test_table_3_quotes_only_what_the_text_quotes():
    """DefRec+PCM on M→S*, 47.1 without and 49.2 with SM-DSB (beta .8), nothing else."""
    low = dict(backbone="pointnet", ssl="defrec", pcm=True, task="M_SC", beta=0.8)
    found = cells(tables.table("3", [result(**low), result(**low | {"select": "all"})]))
    assert found["DefRec+PCM + SM-DSB, stage 2", "paper"] == ["", "49.2", "", "", "", "", ""]
    assert found["DefRec+PCM, stage 2", "paper"] == ["", "47.1", "", "", "", "", ""]
    papers = [v for (_, kind), values in found.items() if kind == "paper" for v in values if v]
    assert sorted(papers) == ["47.1", "49.2"]


def test_a_table_of_nothing_has_the_papers_numbers_and_no_others():
    """No run: every line is the paper's."""
    found = cells(tables.table("1", []))
    assert {kind for _, kind in found} == {"paper", "n, test clouds"} and len(found) == 11


def test_runs_that_do_not_belong_together_are_refused():
    """Another backbone, or other numbers of steps: one line that names the run."""
    with pytest.raises(UserError, match="is dgcnn"):
        tables.table("1", [result(backbone="pointnet")])
    with pytest.raises(UserError, match="differ"):
        tables.table("1", [result(), result(seed=1, steps=20)])


def test_make_tables_run_what_they_are_asked_for(tmp_path):
    """METHODS, TASKS and SEEDS choose the cells; + passes --pcm and --mtl on; a finished cell is not run again."""
    argv = ["make", "-n", "PY=python", "DATA=shapes", "TASKS=M_SC", "SEEDS=3"]
    out = subprocess.run([*argv, "table1", "METHODS=defrec+pcm-all"], cwd=ROOT, capture_output=True, text=True).stdout
    assert "--ssl defrec --pcm --select all" in out and "--seed 3" in out
    assert re.search(r"tables.py 1 runs/M_SC-dgcnn-defrec\+pcm-all-b0.7-s3-shapes$", out, re.M)
    out = subprocess.run([*argv, "table3", "METHODS=gast-all+cgdm"], cwd=ROOT, capture_output=True, text=True).stdout
    assert "--select all --mtl cgdm --beta 0.8" in out and "--steps 20000" in out and "--backbone pointnet" in out


# ---------------------------------------------------------------- trains.py
@pytest.fixture(scope="module")
def few():
    """Sixteen clouds of each domain of the built-in shapes."""
    return {key: data.load_domain("shapes", key) for key in ("M", "S")}


@pytest.mark.parametrize("ssl", trains.TASKS)
@pytest.mark.parametrize("backbone", trains.BACKBONES)
@pytest.mark.parametrize("select", trains.SELECTS)
def test_every_task_learns(select, backbone, ssl, few, monkeypatch):
    """The short form of `make trains`, on sixteen built-in shapes: L_c falls, all is finite, the kept count is as asked."""
    monkeypatch.setattr(data, "load_domain", lambda root, key, labels=True: some(few[key], 16, labels))
    # under self-distillation's distortion a classifier needs hundreds of steps
    monkeypatch.setattr(data, "elastic", lambda points, generator: points)
    flags = dict(task="M_S", data="shapes", ssl=ssl, backbone=backbone, select=select, points=32, batch_size=32, seed=0)
    rows, finite, name = trains.short_run({**flags, "steps": 12, "device": "cpu"})
    found = trains.verdict(rows, finite, trains.asked_for(select, 0.7, 16))
    assert found["ok"], found
    assert name == "built-in shapes" and len(rows) == len(finite) == 12


def test_the_verdict_can_fail():
    """A rising loss, a wrong count or a gradient that is not finite fails a run."""
    row = lambda cls, kept=6: {"cls": cls, "ssl_src": 1.0, "ssl_tgt": 1.0, "kept": kept}
    good = [row(2.0), row(1.5), row(1.0)]
    assert trains.verdict(good, [True], 6)["ok"]
    assert not trains.verdict(good[::-1], [True], 6)["ok"]
    assert not trains.verdict(good, [True, False], 6)["ok"]
    assert not trains.verdict(good, [True], 8)["ok"]
    assert not trains.verdict([row(2.0) | {"ssl_src": float("nan")}, *good[1:]], [True], 6)["ok"]
