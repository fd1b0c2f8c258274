"""Errors of the user's, seeds, atomic writes, and what a run was made with."""

import csv
import hashlib
import io
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent


# ---------------------------------------------------------------- errors
class UserError(Exception):
    """An error of the user's: one line that says what is wrong and what to do; exit code 2."""


def one_line(error):
    """An exception's text as one line: libraries write over several."""
    return " ".join(str(error).split())


def cli(main):
    """Run a command; an error of the user's becomes one line on stderr and exit code 2, a warning one line."""
    warnings.formatwarning = lambda message, *where: f"warning: {message}\n"
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def call(main, *argv):
    """Run a script's main in this process, with these arguments."""
    old, sys.argv = sys.argv, [main.__module__, *map(str, argv)]
    try:
        main()
    finally:
        sys.argv = old


# ---------------------------------------------------------------- seeds
def seed_of(*words):
    """A 63-bit seed that is a pure function of the words, e.g. (seed, "stage 1", step)."""
    text = "/".join(map(str, words)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def generator(device, *words):
    """A torch.Generator on `device`, seeded from the words: every draw of step t is a function of (seed, t)."""
    return torch.Generator(device).manual_seed(seed_of(*words))


# ---------------------------------------------------------------- files
def write_atomically(path, content):
    """Write bytes so that `path` holds the old or the new content whole, never half; UserError if it cannot."""
    temporary = Path(f"{path}.{os.getpid()}.tmp")
    try:
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; free some space or choose another --out") from None


def read_json(path):
    """A run's json file as plain values; UserError where it is missing or damaged."""
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError):
        raise UserError(f"{path}: missing or not JSON; give the folder of a run of stage1_ssl.py") from None


def csv_text(rows):
    """Dictionaries as csv with a header, numbers with five significant digits; a row leaves empty what others have."""
    short = lambda value: f"{value:.5g}" if isinstance(value, float) and math.isfinite(value) else value
    out = io.StringIO()
    writer = csv.DictWriter(out, dict.fromkeys(name for row in rows for name in row), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: short(value) for name, value in row.items()} for row in rows)
    return out.getvalue()


def markdown(head, rows):
    """A table of texts as lines of markdown."""
    line = lambda cells: f"| {' | '.join(cells)} |"
    return [line(head), "|" + "---|" * len(head), *map(line, rows)]


def file_hash(path):
    """sha256 of a file's bytes."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


# ---------------------------------------------------------------- what a run was
def plain(args):
    """Flags as plain values, for json and for checkpoints."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}


def provenance(device):
    """Commit, command, versions and device, as plain values."""
    run = lambda *a: subprocess.run(["git", *a], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    git = run if shutil.which("git") else lambda *a: ""  # an unpacked archive on a slim machine
    dirty = "+changes" if git("status", "--porcelain", "--untracked-files=no", ".", ":!results") else ""
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    versions = {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}
    return {
        "commit": (git("rev-parse", "--short=12", "HEAD") or "unknown") + dirty,
        "command": " ".join(sys.argv),
        "device": name,
        "versions": versions,
    }
