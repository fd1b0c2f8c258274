"""Hostile and broken input: what each command makes of the corpus in hostile_*.py. Linux; some minutes on one core.

python extras/hostile.py                          # -> results/reliability/hostile.md and .csv
python extras/hostile.py --kinds .npy archive     # a part of them, told alone

Everything is imported once, then each input is made in one forked child and given to its command in another, which may
take SECONDS of a processor. An input passes if it is refused, or if it is fine after all and gives what a plain one
does:

    refused     exit code 2 and one line on stderr that begins with "error:", is the last, and names the file or flag
    never       a traceback; a character that a terminal obeys; a file named canary, which only a pickle would make
    memory      peak resident memory (wait4's ru_maxrss) at most MEMORY above that of a child that does nothing, and no
                message of a failed allocation: RLIMIT_AS stops a child at LIMIT more, lest it takes the machine down
    outside     nothing new, gone or changed in the temporary tree, which holds HOME and TMPDIR, but in the case's out/
                and in the cache
"""

import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ["OMP_NUM_THREADS"] = "1"  # a pool of threads does not survive a fork

import engine  # noqa: F401, I001 - first: how torch's threads wait
import sklearn.cluster  # noqa: F401 - so that no child has to import it
import sklearn.linear_model  # noqa: F401
import torch
import trimesh.exchange.load  # noqa: F401

from datasets import files
from engine.base import CONTROL, call, cli, markdown, provenance, write_report
from engine.flags import Parser
from extras.hostile_arrays import base
from extras.hostile_inputs import corpus

MEMORY, LIMIT = 1 << 30, 4 << 30  # bytes above a child that does nothing
SECONDS, PATIENCE = 30, 10  # of a processor, and of the clock so many times that
HELD_BACK = re.compile(  # an allocation that did not succeed, also where MemoryError, which has no text, was caught
    r"MemoryError|[Uu]nable to allocate|can't allocate|[Nn]ot enough memory|error: out of memory|File too large|"
    r"\(\); (fetch|give)"
)


@dataclass
class Outcome:
    """What a child left: its exit code (None: it was killed), what it printed, its peak memory in bytes."""

    code: int | None
    out: str
    err: str
    peak: int


# ---------------------------------------------------------------- a child
def forked(function, tree, where, seconds=None):
    """Call a function in a child in the folder `where`, with tree/home for HOME and TMPDIR -> Outcome."""
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        _child(function, tree, where, seconds or SECONDS)
    end, done = time.monotonic() + PATIENCE * (seconds or SECONDS), 0
    while not done:
        done, status, used = os.wait4(pid, os.WNOHANG)
        if not done:
            time.sleep(0.002)
            if time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
                end = float("inf")
    code = os.waitstatus_to_exitcode(status)
    out, err = ((tree / name).read_bytes().decode(errors="replace") for name in ("stdout", "stderr"))
    return Outcome(code if code >= 0 else None, out, err, used.ru_maxrss * 1024)


def _child(function, tree, where, seconds):
    """The child's part; does not return."""
    code = 1
    try:
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(tree / name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
        os.chdir(where)
        os.environ |= {"HOME": str(tree / "home"), "TMPDIR": str(tree / "home")}
        tempfile.tempdir = None
        files.CACHE = tree / "cache"
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + LIMIT, taken + LIMIT))
        function()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


# ---------------------------------------------------------------- what is asked of it
def snapshot(tree, apart):
    """{path: what lies there} of all of a tree but for folders and files that may change."""
    found = {}
    for folder, folders, names in os.walk(tree):
        folders[:] = [name for name in folders if Path(folder, name) not in apart]
        for path in {Path(folder, name) for name in (*folders, *names)} - apart:
            stat = path.lstat()
            changes = () if path.is_dir() and not path.is_symlink() else (stat.st_size, stat.st_mtime_ns)
            found[path] = (stat.st_mode, *changes)
    return found


def lines_of(err):
    """Lines of stderr without progress bars."""
    return [line for line in (line.rpartition("\r")[2].rstrip() for line in err.split("\n")) if line]


def faults(case, outcome, before, after, idle):
    """What is wrong with an outcome, as a list of texts; none: the input was refused, or accepted rightly."""
    found, lines, said = [], lines_of(outcome.err), outcome.out + outcome.err
    if outcome.code is None:
        return [f"was killed, or took over {SECONDS} s"]
    if "Traceback" in said or "HDF5-DIAG" in said:
        found.append(f"traceback: {lines[-1][:100]}")
    elif case.fine:
        known = outcome.code == 0 and case.fine in outcome.out
        found += [] if known else [f"exit code {outcome.code}, not the result of the plain input: {said[-200:]!r}"]
    else:
        errors = [line for line in lines if line.startswith("error: ")]
        if outcome.code != 2 or errors != lines[-1:]:
            found.append(f"exit code {outcome.code}, {len(errors)} lines of error: {said[-200:]!r}")
        elif case.names not in errors[0]:
            found.append(f"does not name {case.names}: {errors[0][:200]!r}")
    if CONTROL.search(re.sub("[\r\n\t]", "", said)):
        found.append("passes a control character on")
    if outcome.peak > idle + MEMORY or HELD_BACK.search(said):
        found.append(f"memory: {(outcome.peak - idle) >> 20} MiB: {lines[-1:]}")
    changed = [path for path in before.keys() | after.keys() if before.get(path) != after.get(path)]
    if any(path.name == "canary" for path in changed):
        found.append("ran code")
    elif changed:
        found.append(f"wrote outside: {changed[0].name!r}")
    return found


def tried(case, tree, idle):
    """Make the input of a case, give it to its command, and look: (faults, last line of stderr)."""
    shutil.rmtree(tree / "case", ignore_errors=True)
    folder, out = tree / "case" / "in", tree / "case" / "out"
    folder.mkdir(parents=True)
    out.mkdir()
    made = forked(lambda: case.make(folder, out), tree, folder, 4 * SECONDS)
    assert made.code == 0, f"{case.kind} {case.name}: could not be made\n{made.err}"
    apart = {out, tree / "cache", tree / "stdout", tree / "stderr"}
    before = snapshot(tree, apart)
    argv = [
        arg.replace("@in", str(folder)).replace("@out", str(out)).replace("@base", str(tree / "base"))
        for arg in case.argv
    ]
    outcome = forked(lambda: cli(lambda: call(case.main, *argv)), tree, out)
    return faults(case, outcome, before, snapshot(tree, apart), idle), (lines_of(outcome.err) or [""])[-1]


def sweep(cases, tree, show=lambda text: None):
    """Rows of all cases, in a tree that holds base/; show is called with each one's fault."""
    idle = forked(lambda: None, tree, tree).peak
    rows = []
    for case in cases:
        found, said = tried(case, tree, idle)
        rows.append({"kind": case.kind, "input": case.name, "fine": bool(case.fine), "fault": "; ".join(found)})
        rows[-1]["said"] = re.sub(f"{re.escape(str(tree))}/?", "", said)[:160]
        if found:
            show(f"{case.kind}, {case.name}: {rows[-1]['fault']}")
    return rows


def planted(folder):
    """A tree with base/ in it: what the commands need beside the input itself. base/said: of the plain cloud."""
    for name in ("home", "base"):
        (folder / name).mkdir()
    made = forked(lambda: base(folder / "base"), folder, folder / "home", 20 * SECONDS)
    assert made.code == 0, made.err
    return (folder / "base" / "said").read_text()


# ---------------------------------------------------------------- the table
def table(rows):
    """Markdown: a row a kind, with how many inputs were refused, accepted and failed; then who was accepted."""
    kinds, lines = list(dict.fromkeys(row["kind"] for row in rows)), []
    for kind in (*kinds, None):
        own = [row for row in rows if kind in (row["kind"], None)]
        good = [row for row in own if not row["fault"]]
        counts = len(own), sum(not row["fine"] for row in good), sum(row["fine"] for row in good), len(own) - len(good)
        lines.append([kind or "all", *map(str, counts)])
    fine = [f"{kind}: {', '.join(r['input'] for r in rows if r['kind'] == kind and r['fine'])}" for kind in kinds]
    fine = [text for text in fine if not text.endswith(": ")]
    head = ("kind", "inputs tried", "refused in one line", "accepted rightly", "failed")
    failed = [f"- {row['kind']}, {row['input']}: {row['fault']}" for row in rows if row["fault"]]
    parts = [
        *markdown(head, lines),
        "",
        "Accepted, since they are fine after all:",
        "",
        *(f"- {text}" for text in fine),
    ]
    return [*parts, *(["", "Failed:", "", *failed] if failed else [])]


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", help="only these kinds of input, printed and not written")
    parser.add_argument(
        "--out", type=Path, default=Path("results/reliability/hostile"), help="path to write to, without an ending"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    begun, record = time.monotonic(), provenance("cpu")
    with tempfile.TemporaryDirectory() as temporary:
        tree = Path(temporary).resolve()
        cases = [case for case in corpus(planted(tree)) if args.kinds is None or case.kind in args.kinds]
        rows = sweep(cases, tree, lambda text: print(text, flush=True))
    note = (
        f"{len(rows)} inputs made by code, each given to the command that a user would give it to, in its own child. "
        "Refused: exit code 2 and one line that names the file or flag. Of none: a traceback, code of a pickle run, a "
        f"control character printed, over {MEMORY >> 20} MiB more memory than an idle child, over {SECONDS} s, a file "
        "written outside the run's folder. What is checked and how: extras/hostile.py.\n"
        f"Data: made by code, seed 0. Device: {record['device']}. Commit: {record['commit']}."
    )
    text = "\n".join([*table(rows), "", note, ""])
    if args.kinds is None:
        text += write_report(args.out, text, [row | {"commit": record["commit"]} for row in rows])
    print(f"{text}\n{time.monotonic() - begun:.0f} s")
    sys.exit(any(row["fault"] for row in rows))


if __name__ == "__main__":
    cli(main)
