"""The pages: every snippet runs as it stands, every command that they print is one that exists."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ENV = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
PAGES = (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), ROOT / "results/README.md")
TRAIN = "--data shapes --points 24 --batch-size 4 --steps 2 --device cpu --out run"


def snippets(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)


@pytest.mark.parametrize("code", snippets("docs/extend.md"), ids=lambda code: re.findall(r"\.(\w+) ?=|\[", code)[-1])
def test_an_addition_of_extend_md_trains(code, tmp_path):
    """Each is under fifteen lines and, from a file of one's own, runs with the command that the page gives."""
    assert len(code.strip().splitlines()) < 15
    page = (ROOT / "docs/extend.md").read_text()
    flags = re.search(r"`python stage1_ssl.py (--\w+ \w+)", page[page.index(code) :])[1].split()
    backbone = [] if "--backbone" in flags else ["--backbone", "pointnet"]
    argv = ["stage1_ssl.py", *TRAIN.split(), *(["--ssl", "none"] if "--ssl" not in flags else []), *backbone, *flags]
    (tmp_path / "mine.py").write_text(f"{code}\nimport sys, stage1_ssl\nsys.argv = {argv!r}\nstage1_ssl.main()\n")
    done = subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, capture_output=True, text=True, env=ENV)
    assert done.returncode == 0 and (tmp_path / "run/stage1.pt").exists(), done.stderr[-2000:]


def commands(name):
    """Every `make ...` or `python ...` in code blocks and back-quotes of the pages."""
    found = set()
    for page in PAGES:
        text = page.read_text()
        blocks = re.findall(r"```\n(.*?)```", text, re.S)
        lines = [line for block in blocks for line in block.splitlines()] + re.findall(r"`([^`\n]+)`", text)
        found |= {line.strip() for line in lines if re.match(rf"(\w+=\S+ )*{name} ", line.strip())}
    return sorted(found)


@pytest.mark.parametrize("line", commands("make"))
def test_make_knows_every_command_of_the_pages(line):
    """Dry-run, with placeholders filled in and folders that exist not asked for."""
    line = re.sub(r"\[.*?\]|\.\.\.", "", line).replace("DATA=DIR", "DATA=shapes")
    argv = [word for word in shlex.split(line, comments=True) if not re.fullmatch(r"\w+=", word)]
    at = argv.index("make")
    options = [*argv[:at], *argv[at + 1 :]]
    make = [
        "make",
        "-n",
        f"PY={sys.executable}",
        *options,
        *([] if any(o.startswith("DATA") for o in options) else ["DATA=shapes"]),
    ]
    done = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, env=ENV)
    assert done.returncode == 0 and "No rule" not in done.stderr, done.stderr


def test_make_help_names_every_target():
    """What a person may type is in `make help`."""
    text = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True).stdout
    for (
        target
    ) in "demo demo_seg M_S seg_F_A S_S data table table1 study figures lesson trains bench test clean".split():
        assert f"make {target}" in text or f" {target} " in text, target


def test_from_a_folder_of_scans_to_a_csv(tmp_path):
    """The five commands of own-data.md, a few steps of them, where nothing of this repository is written to."""
    for path in ROOT.iterdir():
        if path.name not in ("runs", "results", ".git"):
            (tmp_path / path.name).symlink_to(path)
    block = re.search(r"```\n(.*?)```", (ROOT / "docs/own-data.md").read_text(), re.S)[1]
    small = {"STEPS=400": "STEPS=2", "--points 128": "--points 24", "size 32": "size 4", "iters 20": "iters 1"}
    for text, less in small.items():
        assert text in block
        block = block.replace(text, less)
    assert len(block.splitlines()) == 5
    block = block.replace("python ", f'"{sys.executable}" ').replace("make ", f'make PY="{sys.executable}" ')
    bash = ["bash", "-euc", block]
    done = subprocess.run(bash, cwd=tmp_path, capture_output=True, text=True, env=ENV | {"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr[-2000:]
    (seen,) = tmp_path.glob("runs/own_*/predictions.csv")
    assert len(seen.read_text().splitlines()) == 1 + 378 and seen.read_text().splitlines()[1] in done.stdout
    assert len((tmp_path / "seen" / "predictions.csv").read_text().splitlines()) == 1 + 126
    assert (tmp_path / "003-saliency.png").exists() and "nothing to score" in done.stdout


@pytest.mark.parametrize("index, ran", [("1", "run-a"), ("2", "run-b c"), ("3", None)])
def test_the_array_of_cluster_md_runs_its_cell(index, ran, tmp_path):
    """Each index its line of cells.txt, and nothing beyond the last."""
    script = next(
        b for b in re.findall(r"```bash\n(.*?)```", (ROOT / "docs/cluster.md").read_text(), re.S) if "SBATCH" in b
    )
    (tmp_path / "cells.txt").write_text("run-a\nrun-b c\n")
    make = tmp_path / "make"
    make.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > ran\n')
    make.chmod(0o755)
    env = ENV | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": index}
    subprocess.run(["bash", "-c", script], cwd=tmp_path, env=env, check=True)
    assert (tmp_path / "ran").exists() == bool(ran)
    if ran:
        assert (tmp_path / "ran").read_text().splitlines() == ["--no-print-directory", ran, "DATA=data"]
