"""The cells of a table: which there are, which are missing, and that make runs them where the table looks."""

import re
import shlex
import subprocess
from argparse import Namespace
from pathlib import Path

import pytest

import stage1_ssl
from fixtures import command, refusal
from paper import __main__ as paper
from test_tables import result, write

ROOT = Path(__file__).resolve().parent.parent


# ---------------------------------------------------------------- cells
@pytest.fixture
def cells(tmp_path, monkeypatch, capsys):
    """What `python -m paper cells` prints for these words, in a folder of one's own."""
    monkeypatch.chdir(tmp_path)

    def lines(words):
        command(paper.main, "cells", *words.split(), "--device", "cpu")
        return capsys.readouterr().out.split()

    return lines


def test_cells_are_what_make_runs(cells):
    """METHODS, TASKS and SEEDS choose the cells; an oracle's is one for all directions with its target."""
    found = cells("table1 --tasks M_SC --methods defrec+pcm-all --methods gast-low --seeds 3 4")
    assert found == [f"run-M_SC-{method}-{seed}-0.7" for method in ("defrec+pcm-all", "gast-low") for seed in (3, 4)]
    found = cells("table2 --data shapes --seeds 0")
    oracles = [name for name in found if re.search(r"seg_(.)_\1", name)]
    assert len(found) == 4 + 12 * 5 and sorted(oracles) == [f"run-seg_{key}_{key}-none-all-0-0.7" for key in "AFMS"]
    assert len(cells("table1")) == 126  # as docs/cluster.md says
    assert "run-S_SC-defrec+pcm-all+cagrad-2-0.7" in (found := cells("table3")) and len(found) == 6 * 13 * 3
    assert {name.rsplit("-", 1)[1] for name in found if "selfdist" in name} == {"0.8"}
    assert {name.rsplit("-", 1)[1] for name in found if "selfdist" not in name} == {"0.7"}
    assert cells("study --tasks seg_F_M --methods mlsp-high --seeds 0 --data shapes") == ["run-seg_F_M-mlsp-high-0-0.7"]


def test_a_finished_cell_is_not_run_again(cells, tmp_path, capsys):
    """Its folder is that of stage 1; without the wanted stage, or of another version, it is not finished."""
    words = "table3 --stages 2 --tasks M_SC --seeds 3 --methods {} --points 64".format
    low = dict(backbone="pointnet", steps=20_000, points=64, seed=3, task="M_SC")
    for method in ("gast-low", "defrec+pcm-all"):
        ssl, select = method.split("-")
        args = stage1_ssl.SETTINGS | low | dict(ssl=ssl, select=select, device="cpu")
        folder = stage1_ssl.folder_of(stage1_ssl.settle(Namespace(**args)), "--gcn-iters 5")
        name, text = f"run-M_SC-{method}-3-0.7", f"{words(method)} --stage2=--gcn-iters_5"
        assert cells(text) == [name]
        whole = result(ssl=ssl, select=select, stage=1, acc=0.25, **low)
        write(tmp_path / folder, whole)
        assert cells(text) == [name] and cells(f"{text} --stages 1") == []
        write(tmp_path / folder, {"stage2": {}})
        assert cells(text) == [name]
        write(tmp_path / folder, whole | {"stage2": whole["stage1"]})
        assert cells(text) == [] and cells(words(method)) == [name]
    argv = f"{words('gast-low')} --stage2=--gcn-iters_5 --device cpu".split()
    command(paper.main, *argv)
    text = (tmp_path / "results" / "table3.md").read_text()
    assert text.count("25.0 (1)") == 4 and text in capsys.readouterr().out
    assert len((tmp_path / "results" / "table3.csv").read_text().splitlines()) == 2
    command(paper.main, "study", *argv[1:], "--backbone", "pointnet", "--steps", 20_000)
    assert "M_SC pointnet gast low 0.7" in (tmp_path / "results" / "study.md").read_text()


def test_a_table_has_the_oracles_that_were_run(tmp_path, monkeypatch):
    """In Table I without being asked for."""
    monkeypatch.chdir(tmp_path)
    args = stage1_ssl.SETTINGS | dict(task="S_S", ssl="none", select="all", device="cpu")
    write(tmp_path / stage1_ssl.folder_of(stage1_ssl.settle(Namespace(**args))), result("S_S", "none", "all", stage=1))
    command(paper.main, "table1", "--device", "cpu")
    assert "| Oracle | last | 50.0 (1) |" in (tmp_path / "results" / "table1.md").read_text()


@pytest.mark.parametrize(
    "words, text",
    [
        ("cells table1 --methods selfdist", "--methods selfdist"),
        ("cells table1 --methods x-low", "--methods x-low"),
        ("cells table1 --tasks X_Y", "X_Y"),
        ("cells table1 --tasks seg_F_A --data shapes", "Table I has"),
        ("cells table1 --backbone pointnet", "Table I is dgcnn"),
        ("table1 --seed 3", "--seeds"),
        ("table3 --mtl cgdm", "--methods"),
        ("study --tasks M_S", "make study"),
    ],
)
def test_errors_are_one_line(words, text, tmp_path, monkeypatch):
    """What cannot be a cell, and a table of nothing."""
    monkeypatch.chdir(tmp_path)
    assert text in refusal(lambda: command(paper.main, *words.split(), "--device", "cpu"))


def test_make_runs_a_cell_where_the_table_looks_for_it(tmp_path, monkeypatch, capsys):
    """run-TASK-SSL-SELECT-SEED-BETA becomes flags of stage 1, and these the folder that the cell has."""
    make = lambda *words: subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True).stdout
    (cell,) = re.findall(r"run (TASK=.*)", make("PY=python", "run-M_SC-defrec+pcm-all+cgdm-3-0.7"))
    shared = ["DATA=shapes", "BACKBONE=pointnet", "STEPS=20000", "ARGS=--points 64", "ARGS2=--gcn-iters 5"]
    out = make("PY=python", "run", *cell.split(), *shared)
    flags = re.search(r'run="\$\("python" stage1_ssl.py (.*)\)"', out).group(1)
    command(stage1_ssl.main, *shlex.split(flags))
    folder = Path(capsys.readouterr().out.strip())

    monkeypatch.chdir(tmp_path)
    words = "table3 --data shapes --tasks M_SC --seeds 3 --methods defrec+pcm-all+cgdm --points 64".split()
    whole = result("M_SC", "defrec+pcm", "all", 3, mtl="cgdm", backbone="pointnet", steps=20_000, points=64)
    write(tmp_path / folder, whole)
    command(paper.main, "cells", *words, "--stage2=--gcn-iters 5")
    assert capsys.readouterr().out.strip() == ""
