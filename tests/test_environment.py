"""The Makefile's .venv: an old Python is refused before anything is made, half a .venv is made anew."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# a python that says it is VERSION, writes what it is asked for into a log, and whose pip fails where no-pip lies about
FAKE = """#!/bin/sh
case "$*" in
*version_info*print*|*print*version_info*) echo VERSION ;;
*sys.exit*) [ "$(printf 'VERSION\\n3.11\\n' | sort -t. -k1,1n -k2,2n | head -n 1)" = 3.11 ] ;;
*"-m venv"*) echo "venv VERSION $*" >> log; rm -rf .venv; mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
*pip*) echo "pip VERSION" >> log; [ ! -e no-pip ] ;;
esac
"""


@pytest.fixture
def checkout(tmp_path):
    """A folder with a space that holds the Makefile; python3 is 3.9, python3.12 and python3.13 are there, too."""
    root = tmp_path / "a checkout"
    (root / "bin").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", root), shutil.copy(ROOT / "requirements.txt", root)
    for name, version in (("python3", "3.9"), ("python3.12", "3.12"), ("python3.13", "3.13")):
        (root / "bin" / name).write_text(FAKE.replace("VERSION", version))
        (root / "bin" / name).chmod(0o755)
    return root


def make(root, *argv, **env):
    env = {k: v for k, v in os.environ.items() if k != "PYTHON" and not k.startswith("MAKE")} | env
    env["PATH"] = f"{root / 'bin'}:{env['PATH']}"
    done = subprocess.run(["make", *argv], cwd=root, capture_output=True, text=True, env=env)
    log = (root / "log").read_text().splitlines() if (root / "log").exists() else []
    (root / "log").unlink(missing_ok=True)
    return done, [line.split()[0:2] for line in log]


@pytest.mark.parametrize("python", ["python3", "python3.99"])
def test_an_old_or_absent_python_is_refused_in_one_line(checkout, python):
    """Nothing is made; the line says what to type."""
    done, log = make(checkout, "demo", *([] if python == "python3" else [f"PYTHON={python}"]))
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert lines == [f"{python} is no Python 3.11 or newer; name one that is: PYTHON=python3.12 make demo"]
    assert done.returncode == 2 and not log and not (checkout / ".venv").exists()


def test_the_remedy_works_and_the_next_call_keeps_what_it_made(checkout):
    """PYTHON=python3.12 makes it once; later, without PYTHON, the old python3 is no matter."""
    made = [["venv", "3.12"], ["pip", "3.12"]]
    assert make(checkout, ".venv/.ready", PYTHON="python3.12")[1] == made
    for argv in ([], ["PYTHON=python3.12"]):
        done, log = make(checkout, ".venv/.ready", *argv)
        assert done.returncode == 0 and not log
    os.utime(checkout / "requirements.txt", (2**32, 2**32))  # newer pins
    assert make(checkout, ".venv/.ready")[1] == [["pip", "3.12"]]


def test_half_an_environment_is_made_anew(checkout):
    """Where pip was stopped, or the folder is all there is."""
    (checkout / "no-pip").touch()
    done, _ = make(checkout, ".venv/.ready", PYTHON="python3.12")
    assert done.returncode == 2 and not (checkout / ".venv/.ready").exists()
    (checkout / "no-pip").unlink()
    (checkout / ".venv/rest").touch()
    assert make(checkout, ".venv/.ready", PYTHON="python3.12")[1] == [["venv", "3.12"], ["pip", "3.12"]]
    assert not (checkout / ".venv/rest").exists()


def test_another_python_replaces_it(checkout):
    """One that is asked for by name, and one in place of a Python that is gone."""
    make(checkout, ".venv/.ready", PYTHON="python3.12")
    assert make(checkout, ".venv/.ready", "PYTHON=python3.13")[1] == [["venv", "3.13"], ["pip", "3.13"]]
    (checkout / ".venv/bin/python").unlink()
    done, log = make(checkout, ".venv/.ready")
    assert done.returncode == 2 and "no Python 3.11" in done.stderr and not log
    assert make(checkout, ".venv/.ready", PYTHON="python3.12")[1] == [["venv", "3.12"], ["pip", "3.12"]]


def test_an_environment_of_ones_own_is_left_alone(checkout):
    """PY=python: no .venv is asked for, and none is made."""
    done, log = make(checkout, "-n", "demo", "PY=python3.12")
    assert done.returncode == 0 and "venv" not in done.stdout and not log
