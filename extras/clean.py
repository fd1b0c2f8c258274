"""Remove caches and the finished or stopped runs on built-in shapes: what `make clean` calls. Everything else stays.

    python extras/clean.py

Only folders under runs/ whose config.json names the built-in shapes are touched, and in them only the files that the
scripts write: a folder that holds anything else keeps it. A run in progress stays, and so does what a link leads to.
"""

import json
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WRITTEN = (
    "config.json",
    "log.jsonl",
    "result.json",
    "*.[0-9]*.tmp",
    "last[12].pt",
    "stage[12].pt",
    "preds[12].npz",
    ".lock",
)
PICTURES = ("confusion.png", "parts.png")


def on_shapes(run):
    """Whether every stage in a run's config.json was trained on the built-in shapes."""
    try:
        stages = json.loads((run / "config.json").read_text())
        return bool(stages) and all(stage["args"]["data"] == "shapes" for stage in stages.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False  # not a run's config: not ours to delete


def in_progress(run):
    """Whether a process holds the lock of a run."""
    try:
        import fcntl

        with open(run / ".lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):  # no locks on this system, or none on this run
        pass
    return False


def remove_run(run):
    """Delete what the scripts wrote into a run's folder, and the folder if nothing else is in it -> what happened."""
    for pattern in (*WRITTEN, *PICTURES):
        for path in run.glob(pattern):
            path.unlink()
    if any(run.iterdir()):
        return f"{run.relative_to(ROOT)}: removed the run, left the files that are not its own"
    run.rmdir()
    return f"{run.relative_to(ROOT)}: removed"


def main():
    caches = [ROOT / ".cache", ROOT / ".pytest_cache", ROOT / "__pycache__", *ROOT.glob("[a-z]*/__pycache__")]
    for folder in caches:
        if not folder.is_symlink():
            shutil.rmtree(folder, ignore_errors=True)
    runs = ROOT / "runs"
    for run in sorted(runs.iterdir()) if runs.is_dir() else ():
        if run.is_symlink() or not run.is_dir() or not on_shapes(run):
            continue
        print(f"{run.relative_to(ROOT)}: in progress, left" if in_progress(run) else remove_run(run))


if __name__ == "__main__":
    main()
