"""Errors of the user's, seeds, atomic writes, and what a run was made with."""

import csv
import errno
import hashlib
import io
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
MOST_TEXT = 1 << 26  # bytes of a json or csv file that is read whole


# ---------------------------------------------------------------- errors
class UserError(Exception):
    """An error of the user's: one line that says what is wrong and what to do; exit code 2."""


def one_line(error):
    """An exception's text as one line: libraries write over several."""
    return " ".join(str(error).split())


def cli(main):
    """Run a command; an error of the user's becomes one line on stderr and exit code 2, a warning one line."""
    warnings.formatwarning = lambda message, *where: f"warning: {visible(message)}\n"
    sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be no text
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if not isinstance(error, UserError) and not out_of_memory(error):
            raise
        print(f"error: {visible(error if isinstance(error, UserError) else OUT_OF_MEMORY)}", file=sys.stderr)
        sys.exit(2)


OUT_OF_MEMORY = (
    "out of memory; free some and run the same command, a training goes on from its last checkpoint, which is kept; or "
    "begin a smaller one with --batch-size or --points, in another --out"
)


def out_of_memory(error):
    """Whether an exception, or one that it came of, says that memory of the machine or of a GPU is short."""
    words = "out of memory|not enough memory|allocate memory|bad_alloc|ALLOC_FAILED"  # torch's
    short = isinstance(error, MemoryError) or isinstance(error, OSError) and error.errno == errno.ENOMEM
    short = short or isinstance(error, RuntimeError) and bool(re.search(words, str(error)))
    return short or bool(error.__context__) and out_of_memory(error.__context__)


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
def write_atomically(path, content, remedy="free some space or choose another --out"):
    """Write bytes so that `path` holds the old or the new content whole, never half; UserError if it cannot.

    On the disk before it has its name, so that this holds for a machine that loses power, too.
    """
    temporary = Path(f"{path}.{os.getpid()}.tmp")
    try:
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; {remedy}") from None


CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")  # also what turns a line


def visible(text):
    """A text without characters that a terminal would obey: a file's name may hold any."""
    return CONTROL.sub(lambda match: ascii(match[0])[1:-1], str(text))


def read_json(path):
    """A run's json file, an object, as plain values; UserError where it is missing, damaged or over MOST_TEXT bytes."""
    try:
        text = Path(path).read_text() if Path(path).stat().st_size <= MOST_TEXT else ""
        found = json.loads(text)
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        again = f"python eval.py --run {Path(path).parent}"
        raise UserError(f"{path}: missing or not JSON; give the folder of a run of stage1_ssl.py, after {again}")
    return found


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


def write_report(out, text, rows):
    """OUT.md, a text, and OUT.csv, the rows behind it, in a folder that may be new; says so in a line."""
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(f"{out}.md", text.encode())
    write_atomically(f"{out}.csv", csv_text(rows).encode())
    return f"wrote {out}.md and .csv"


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
