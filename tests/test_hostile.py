"""Broken input of any kind: points or one line. Drawn at random here; extras/hostile.py has the corpus by hand."""

import json
import pickle
import sys
import time
from functools import lru_cache
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import stage1_ssl
from datasets.clouds import read_cloud
from engine import checked
from engine.base import CONTROL, UserError, read_json, visible
from engine.flags import Parser, add_flags, recorded
from extras import hostile
from extras.hostile_arrays import GOOD, Case, Pickle, zipped
from extras.hostile_inputs import LE, ROWS, npy, pcd, ply, text

few = lambda n: settings(
    derandomize=True, deadline=None, max_examples=n, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def refused_or(call, result):
    """Whether a call gives what `result` approves of, or ends in a UserError of one line."""
    try:
        return result(call())
    except UserError as error:
        return "\n" not in str(error) and "; " in str(error)


# ---------------------------------------------------------------- files
CORNERS = "0 0 0\n1 0 0\n0 1 0\n0 0 1\n"
FACES = "3 0 1 2\n3 0 1 3\n3 0 2 3\n3 1 2 3\n"
SOUND = {
    ".npy": npy(GOOD),
    ".npz": None,
    ".h5": None,
    ".ply": (LE, GOOD.astype("<f4").tobytes()),
    ".mesh.ply": None,
    ".off": f"OFF\n4 4 0\n{CORNERS}{FACES}".encode(),
    ".obj": ("".join(f"v {line}\n" for line in CORNERS.splitlines()) + "f 1 2 3\nf 1 2 4\nf 1 3 4\n").encode(),
    ".pcd": None,
    ".stl": bytes(80) + b"\4\0\0\0" + (np.arange(12, dtype="<f4") % 5).tobytes() + bytes(2),
    ".txt": ROWS.encode(),
}


def sound(ending, path):
    """The bytes of a sound file of this kind."""
    if ending == ".h5":
        with h5py.File(path, "w") as file:
            file.create_dataset("points", data=GOOD, chunks=(16, 3), compression="gzip")
    elif ending == ".npz":
        zipped({"points.npy": npy(GOOD)}, 8)(path)
    elif ending == ".ply":
        ply(64, LE, body=GOOD.astype("<f4").tobytes())(path)
    elif ending == ".mesh.ply":
        ply(4, more="element face 4\nproperty list uchar int vertex_indices\n", body=CORNERS + FACES)(path)
    elif ending == ".pcd":
        pcd({}, "binary", GOOD.astype("<f4").tobytes())(path)
    else:
        path.write_bytes(SOUND[ending])
    return path.read_bytes()


EDITS = st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=6), st.integers(0, 6)), min_size=1, max_size=4)


@pytest.mark.parametrize("ending", SOUND)
@few(25)
@given(edits=EDITS, at_head=st.booleans())
def test_bytes_changed_anywhere_give_points_or_one_line(tmp_path, ending, edits, at_head):
    """Some bytes replaced, removed or put in, anywhere or near the beginning."""
    path = tmp_path / f"cloud{ending}"
    content = sound(ending, path)
    for share, new, gone in edits:
        at = int(share * min(len(content), 200 if at_head else len(content)))
        content = content[:at] + new + content[at + gone :]
    path.write_bytes(content)
    finite = lambda cloud: (
        cloud.points.shape[1:] == (3,) and 2 <= len(cloud.points) <= 64 and np.isfinite(cloud.points).all()
    )
    assert refused_or(lambda: read_cloud(path, 64), finite)


NUMBER = st.integers(-(10**6), 10**6).map(lambda i: i / 1000)


@few(120)
@given(
    table=st.lists(st.tuples(NUMBER, NUMBER, NUMBER), min_size=2, max_size=20),
    form=st.sampled_from(
        [(s, ".") for s in (" ", "\t", ",", ";", "|", ", ", "  ")] + [(s, ",") for s in (" ", "\t", ";")]
    ),
    end=st.sampled_from(["\n", "\r\n"]),
    head=st.sampled_from(["", "x{0}y{0}z"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_a_table_is_read_as_it_was_written(tmp_path, table, form, end, head, encoding):
    """In every separator, decimal convention, line end and encoding, with a header or without."""
    assume(np.ptp(table, 0).max() > 0)
    separator, point = form
    lines = [head.format(separator)] if head else []
    lines += [separator.join(f"{v:.3f}".replace(".", point) for v in row) for row in table]
    path = tmp_path / "table.txt"
    path.write_bytes("".join(line + end for line in lines).encode(encoding))
    assert np.allclose(read_cloud(path).points, table)


# ---------------------------------------------------------------- flags, and what a run has recorded
VALUES = [
    "0",
    "-1",
    "1",
    "20",
    "0.5",
    "nan",
    "inf",
    "1e999",
    "9" * 400,
    "",
    "x",
    "y",
    "z",
    "low",
    "all",
    "gast",
    "none",
]
VALUES += ["pointnet", "dgcnn", "M_S", "seg_F_A", "S_S", "own_source_target", "../../x", "a\x1b[31m", "shapes", "4"]
NAMES = [
    "task",
    "data",
    "source",
    "target",
    "backbone",
    "ssl",
    "select",
    "beta",
    "steps",
    "seed",
    "out",
    "score",
    "alpha",
]
NAMES += ["measure", "mtl", "points", "batch-size", "eval-every", "up", "target-up", "device"]


@few(150)
@given(st.dictionaries(st.sampled_from(NAMES), st.sampled_from(VALUES), max_size=5))
def test_any_flags_settle_or_end_in_one_line(tmp_path, flags):
    """And those that settle are numbers in range."""

    def settled():
        parser = Parser(prog="stage1_ssl.py")
        add_flags(parser, *stage1_ssl.CHOICES, **stage1_ssl.SETTINGS)
        argv = ["--data", str(tmp_path), *(f"--{name}={value}" for name, value in flags.items())]
        return stage1_ssl.settle(parser.parse_args(argv))

    sound = lambda args: 0 <= args.beta <= 1 and args.points >= 20 and args.batch_size % 2 == 0 and args.steps >= 1
    assert refused_or(settled, sound)


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
ANY = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


@lru_cache
def settled_flags():
    parser = Parser()
    add_flags(parser, *stage1_ssl.CHOICES, **stage1_ssl.SETTINGS)
    return vars(stage1_ssl.settle(parser.parse_args(["--device", "cpu"]))) | {"out": "runs/x"}


@few(150)
@given(st.dictionaries(st.sampled_from([name.replace("-", "_") for name in NAMES]), ANY, max_size=2))
def test_a_recorded_flag_is_one_that_could_be_given(values):
    """What recorded lets pass, the command line takes, too; and it passes what a run records."""
    flags = settled_flags()
    assert recorded(dict(flags), stage1_ssl.CHOICES) is None
    wrong = recorded(flags | values, stage1_ssl.CHOICES)
    assert wrong is None or wrong in values
    for name in ("beta", "points", "steps", "alpha"):
        if name in values and wrong is None:
            parser = Parser()
            add_flags(parser, *stage1_ssl.CHOICES)
            parser.parse_args([f"--{name}={values[name]!r}"])


@few(100)
@given(
    content=st.one_of(
        st.binary(max_size=60),
        st.text(alphabet='{}[]":,0123eE+-.tfn \\u', max_size=60).map(str.encode),
        ANY.map(json.dumps).map(str.encode),
    )
)
def test_any_bytes_are_json_of_a_run_or_one_line(tmp_path, content):
    path = tmp_path / "result.json"
    path.write_bytes(content)
    assert refused_or(lambda: read_json(path), lambda found: isinstance(found, dict))
    assert refused_or(lambda: checked.read_config(tmp_path, stage1_ssl.CHOICES), lambda found: isinstance(found, dict))


@few(100)
@given(ANY)
def test_no_value_breaks_the_test_of_a_form(value):
    assert checked.fits(value, {"a": [checked.whole]}) in (True, False)
    assert checked.wrong_in(value) and not checked.is_result(value, (), (), {})


@few(60)
@given(st.text())
def test_what_is_shown_holds_nothing_that_a_terminal_obeys(name):
    assert not CONTROL.search(visible(name)) and visible("стул 椅子") == "стул 椅子"


# ---------------------------------------------------------------- the harness finds what it looks for
def unpickles():
    pickle.loads(Path(sys.argv[1]).read_bytes())
    raise UserError(f"{sys.argv[1]}: no; go")


def writes_outside():
    (Path.home() / "here").write_text("x")
    raise UserError(f"{sys.argv[1]}: no; go")


def breaks():
    raise ValueError(sys.argv[1])


def takes_memory():
    raise UserError(f"{sys.argv[1]}: {np.ones(1 << 28, np.uint8)[0]}; go")


def is_told_no_memory():
    try:
        np.ones(1 << 40)
    except MemoryError as error:
        raise UserError(f"{sys.argv[1]}: {error}; go") from None


def obeyed():
    print("\x1b[31m")
    raise UserError(f"{sys.argv[1]}: no; go")


def names_nothing():
    raise UserError("no; go")


def says_it_twice():
    print("error: no", file=sys.stderr)
    raise UserError(f"{sys.argv[1]}: no; go")


def accepts():
    print("fine")


def waits():
    time.sleep(60)


def refuses():
    raise UserError(f"{sys.argv[1]}: no; go")


PLANTED = {unpickles: "ran code", writes_outside: "wrote outside", breaks: "traceback", takes_memory: "memory"}
PLANTED |= {is_told_no_memory: "memory", obeyed: "passes a control character", names_nothing: "does not name"}
PLANTED |= {says_it_twice: "exit code 2, 2 lines of error", accepts: "exit code 0", waits: "was killed", refuses: ""}


@pytest.mark.parametrize("main", PLANTED, ids=lambda main: main.__name__)
def test_the_harness_finds_a_planted_fault(tmp_path, monkeypatch, main):
    """Each of what it looks for, in a command that is at fault; and nothing in one that refuses as it should."""
    (tmp_path / "home").mkdir()
    monkeypatch.setattr(hostile, "MEMORY", 1 << 27)
    if main is waits:
        monkeypatch.setattr(hostile, "SECONDS", 1)
        monkeypatch.setattr(hostile, "PATIENCE", 1)
    make = lambda folder, out: (folder / "x").write_bytes(pickle.dumps(Pickle(folder / "x")))
    (row,) = hostile.sweep([Case("planted", "x", make, main, ["@in/x"], "in/x")], tmp_path)
    assert row["fault"].startswith(PLANTED[main]) and bool(row["fault"]) == bool(PLANTED[main])


def test_the_harness_wants_the_result_of_the_plain_input(tmp_path):
    """An input that is fine after all is accepted with the right result, and not otherwise."""
    (tmp_path / "home").mkdir()
    make = lambda folder, out: text("x")(folder / "x")
    cases = [Case("planted", name, make, accepts, ["@in/x"], fine=name) for name in ("fine", "finer")]
    right, wrong = hostile.sweep(cases, tmp_path)
    assert not right["fault"] and "not the result" in wrong["fault"]
    table = "\n".join(hostile.table([right, wrong]))
    assert "| planted | 2 | 0 | 1 | 1 |" in table and "- planted, finer: exit code 0" in table
