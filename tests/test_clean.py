"""`make clean` removes runs on the built-in shapes and nothing else, whatever a folder is called."""

import fcntl
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture
def house(tmp_path):
    """A checkout of the Makefile and what `make clean` calls, in a folder with a space."""
    root = tmp_path / "my house"
    (root / "extras").mkdir(parents=True)
    shutil.copy(REPOSITORY / "Makefile", root)
    shutil.copy(REPOSITORY / "extras/clean.py", root / "extras")
    return root


def plant(folder, *data):
    """A run's folder, one stage for each data set given."""
    folder.mkdir(parents=True)
    stages = {f"stage{n}": {"args": {"data": name}} for n, name in enumerate(data, 1)}
    (folder / "config.json").write_text(json.dumps(stages, indent=1))
    for name in ("stage1.pt", "last1.pt", "log.jsonl", "result.json", ".lock", "preds1.npz"):
        (folder / name).write_text("x")
    return folder


def clean(house):
    return subprocess.run(["make", "clean"], cwd=house, capture_output=True, text=True, check=True).stdout


def contents(folder):
    return {path.relative_to(folder): path.is_dir() or path.read_bytes() for path in folder.rglob("*")}


def test_clean_leaves_all_that_is_not_a_run_on_shapes(house):
    runs = house / "runs"
    plant(runs / "my first try", "data")
    plant(runs / "custom", "my clouds", "my clouds")
    plant(runs / "mixed", "shapes", "data")  # stage 2 on other data
    (runs / "my first try" / "notes.txt").write_text("what I saw")
    (runs / "notes.txt").write_text("shapes")
    (runs / "not a run").mkdir()
    (runs / "not a run" / "config.json").write_text('{"data": "shapes"}')
    (runs / "damaged").mkdir()
    (runs / "damaged" / "config.json").write_text('{"stage1": {"args": {"data": "shapes"')
    (house / "try").mkdir()
    (house / "first").write_text("beside it")
    before = contents(house)
    clean(house)
    assert contents(house) == before


@pytest.mark.parametrize("name", ["plain", "my first try", "-rf", "new\nline", "*", "'quoted\" name"])
def test_clean_removes_runs_on_shapes_whatever_they_are_called(house, name):
    kept = plant(house / "runs" / "custom", "data")
    gone = plant(house / "runs" / name, "shapes", "shapes")
    assert "removed" in clean(house)
    assert not gone.exists() and kept.exists()


def test_clean_leaves_a_note_in_a_run_and_what_a_link_leads_to(house, tmp_path):
    run = plant(house / "runs" / "with a note", "shapes")
    (run / "notes.txt").write_text("what I saw")
    elsewhere = plant(tmp_path / "elsewhere", "shapes")
    os.symlink(elsewhere, house / "runs" / "link")
    assert "left the files" in clean(house)
    assert [path.name for path in run.iterdir()] == ["notes.txt"]
    assert (elsewhere / "stage1.pt").exists() and (house / "runs" / "link").is_symlink()


def test_clean_leaves_a_run_in_progress(house):
    run = plant(house / "runs" / "busy", "shapes")
    with open(run / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "in progress" in clean(house)
    assert (run / "stage1.pt").exists()


def test_clean_without_runs_removes_caches(house):
    for folder in (".cache", "__pycache__", "tests/__pycache__"):
        (house / folder).mkdir(parents=True)
    clean(house)
    assert not any((house / folder).exists() for folder in (".cache", "__pycache__", "tests/__pycache__"))
