"""Inputs of hostile.py, second part: meshes, text, json, csv, archives, names of files, flags; and all together.

corpus(said)     # [Case, ...]; said: what my_cloud.py prints of the plain cloud
"""

import gzip
import io
import json
import lzma
import os
import pickle
import tarfile
import zipfile

import numpy as np

import eval as evaluation
import stage1_ssl
import stage2_pseudo
from datasets import download
from extras import my_cloud
from extras.hostile_arrays import DROP, GOOD, HUGE, OWN, TRAIN, Case, base_of, bomb, clouds, copy_run, h5s, nested, npys
from extras.hostile_arrays import NPZ, NPZ_FINE, Pickle, npy, pts, raw, save, sparse, zipped
from paper import __main__ as paper

ROWS = "".join(f"{x} {y} {z}\n" for x, y, z in GOOD)


def text(*parts):
    return lambda path: path.write_bytes(b"".join(p if isinstance(p, bytes) else p.encode() for p in parts))


# ---------------------------------------------------------------- meshes and clouds with a header
def ply(count, form="ascii", more="", body=ROWS):
    axes = "property float x\nproperty float y\nproperty float z\n"
    return text(f"ply\nformat {form} 1.0\nelement vertex {count}\n{axes}{more}end_header\n", body)


LE = "binary_little_endian"
FACE = "element face {}\nproperty list {} int vertex_indices\n"
BINARY = GOOD.astype("<f4").tobytes()
PLY = {
    "billions of vertices": ply(10**10),
    "billions of vertices, binary": ply(10**10, LE, body=BINARY),
    "a negative count": ply(-5),
    "a count of text": ply("many"),
    "a count of 5000 digits": ply("9" * 5000),
    "billions of elements without a property": ply(
        64, LE, "element nothing 9999999999\n" + FACE.format(1, "uchar"), BINARY
    ),
    "billions of faces": ply(64, LE, FACE.format(10**10, "uchar"), BINARY + bytes(100)),
    "a face out of range": ply(64, more=FACE.format(1, "uchar"), body=ROWS + "3 0 1 64\n"),
    "a negative corner": ply(64, more=FACE.format(1, "uchar"), body=ROWS + "3 0 1 -1\n"),
    "a list of 4 billion corners": ply(64, LE, FACE.format(1, "uint"), BINARY + b"\xff" * 4 + bytes(60)),
    "a list of -1 corners": ply(64, LE, FACE.format(2, "char"), BINARY + b"\xff" + bytes(60)),
    "lists as vertices": text("ply\nformat ascii 1.0\nelement vertex 1\nproperty list int float x\nend_header\n1 2\n"),
    "no header's end": text("ply\nformat ascii 1.0\nelement vertex 64\n", "comment more\n" * 100_000),
    "an unknown format": ply(64, "binary_middle_endian"),
    "an unknown type": ply(64, more="property quaternion q\n"),
    "no vertices": ply(0, body=""),
    "two kinds of vertices": ply(64, more="element vertex 64\nproperty float x\n"),
    "the header alone": ply(64, body=""),
    "truncated binary": ply(64, LE, body=BINARY[:-1]),
    "NaN alone": ply(64, LE, body=np.full((64, 3), np.nan, "<f4").tobytes()),
}
PLY_FINE = {
    "binary": ply(64, LE, body=BINARY),
    "big-endian": ply(64, "binary_big_endian", body=GOOD.astype(">f4").tobytes()),
    "names a file of textures": ply(64, more="comment TextureFile ../../../etc/passwd\n"),
}
OFF = {
    "billions of vertices": text("OFF\n9999999999 0 0\n", ROWS),
    "billions of faces": text("OFF\n64 9999999999 0\n", ROWS),
    "a negative count": text("OFF\n-64 0 0\n", ROWS),
    "counts of 5000 digits": text(f"OFF\n{'9' * 5000} 0 0\n", ROWS),
    "no counts": text("OFF\n", ROWS),
    "a face out of range": text("OFF\n64 1 0\n", ROWS, "3 0 1 64\n"),
    "a face of negative corners": text("OFF\n64 1 0\n", ROWS, "-3 0 1 2\n"),
    "a face of 10^18 corners": text("OFF\n64 1 0\n", ROWS, f"{10**18} 0 1 2\n"),
    "a corner beyond 64 bits": text("OFF\n64 1 0\n", ROWS, f"3 0 1 {10**30}\n"),
    "words for numbers": text("OFF\n64 0 0\n", "a b c\n" * 64),
    "fewer rows than announced": text("OFF\n64 0 0\n", "0 0 1\n" * 10 + " " * 1000),
}
OBJ = {
    "a face out of range": text("".join(f"v {line}\n" for line in ROWS.splitlines()), "f 1 2 65\n"),
    "a relative face out of range": text("".join(f"v {line}\n" for line in ROWS.splitlines()), "f -1 -2 -65\n"),
    "corner 0": text("".join(f"v {line}\n" for line in ROWS.splitlines()), "f 0 1 2\n"),
    "a corner beyond 64 bits": text("".join(f"v {line}\n" for line in ROWS.splitlines()), f"f 1 2 {10**30}\n"),
    "a face of words": text("".join(f"v {line}\n" for line in ROWS.splitlines()), "f a b c\n"),
    "vertices of words": text("v a b c\n" * 64),
    "vertices of two numbers": text("v 1 2\n" * 64),
    "no vertex": text("f 1 2 3\n"),
    "a line of 2 MB": text("v ", "1" * (2 << 20), " 2 3\n"),
}
OBJ_FINE = {"names a file of materials": text("mtllib ../../../etc/passwd\n", *(f"v {r}\n" for r in ROWS.splitlines()))}


def pcd(head=None, form="ascii", body=ROWS):
    fields = {"VERSION": ".7", "FIELDS": "x y z", "SIZE": "4 4 4", "TYPE": "F F F", "COUNT": "1 1 1", "WIDTH": "64"}
    fields |= {"HEIGHT": "1", "POINTS": "64"} | (head or {})
    return text("".join(f"{key} {value}\n" for key, value in fields.items()), f"DATA {form}\n", body)


PCD = {
    "billions of points": pcd({"POINTS": 10**10}),
    "billions of points, binary": pcd({"POINTS": 10**10}, "binary", BINARY),
    "billions of points, compressed": pcd(
        {"POINTS": 10**9}, "binary_compressed", b"\x10\0\0\0\0\xb8\x64\xd9" + bytes(99)
    ),
    "compressed, claiming 4 GB": pcd(
        {"POINTS": 357_913_941}, "binary_compressed", b"\xff\xff\xff\xff\xfc\xff\xff\xff" + bytes(99)
    ),
    "compressed rubbish": pcd({}, "binary_compressed", b"\x63\0\0\0\0\3\0\0" + b"\xe0\xff" * 50),
    "a negative number of points": pcd({"POINTS": -64}, "binary", BINARY),
    "a size of zero": pcd({"SIZE": "0 0 0"}, "binary", BINARY),
    "a size of 5 bytes": pcd({"SIZE": "5 5 5"}, "binary", BINARY),
    "a count of billions": pcd({"COUNT": "1 1 9999999999"}, "binary", BINARY),
    "a negative count": pcd({"COUNT": "1 1 -1"}, "binary", BINARY),
    "a count of zero": pcd({"COUNT": "0 0 0"}, "binary", BINARY),
    "fewer types than fields": pcd({"TYPE": "F"}, "binary", BINARY),
    "an unknown type": pcd({"TYPE": "Q Q Q"}),
    "an unknown form": pcd({}, "sealed"),
    "no fields": pcd({"FIELDS": ""}),
}
PCD_FINE = {"binary": pcd({}, "binary", BINARY)}
FACET = "facet normal 0 0 1\nouter loop\nvertex 0 0 {z}\nvertex 1 0 0\nvertex 0 1 0\nendloop\nendfacet\n"
STL = {
    "billions of triangles": text(bytes(80), b"\xff\xff\xff\xff", bytes(500)),
    "no triangle": text(bytes(84)),
    "truncated": text(bytes(80), b"\x02\0\0\0", bytes(50)),
    "text without an end": text("solid a\n", FACET.format(z=0) * 3, "facet normal 0 0 1\nouter loop\nvertex 0 0 0\n"),
    "text of words": text("solid a\nfacet normal a b c\nouter loop\nvertex a b c\n", "endfacet\n"),
    "NaN alone": text(bytes(80), b"\x02\0\0\0", (np.full(12, np.nan, "<f4").tobytes() + bytes(2)) * 2),
    "triangles without an area": text(bytes(80), b"\x02\0\0\0", (np.ones(12, "<f4").tobytes() + bytes(2)) * 2),
}


def meshes(said):
    for ending, bad, fine in ((".ply", PLY, PLY_FINE), (".off", OFF, {"vertices alone": text("OFF\n64 0 0\n", ROWS)})):
        yield from clouds(ending, ending, bad | raw(ply(64, LE, body=BINARY)) if fine is PLY_FINE else bad, fine, said)
    yield from clouds(".obj", ".obj", OBJ, OBJ_FINE, said)
    yield from clouds(".pcd", ".pcd", PCD, PCD_FINE, said)
    yield from clouds(".stl", ".stl", STL, {}, said)


# ---------------------------------------------------------------- rows of text
TEXT = {
    "binary": text(bytes(range(256)) * 20),
    "zeros, 100 MB": sparse(b"", 100 << 20),
    "one line of 100 MB": sparse(b"1 2 3 ", 100 << 20),
    "a line of 2 MB": text("1 2 ", "3" * (2 << 20)),
    "a hundred lines of 700 KB": text(("11 " * 240_000 + "\n") * 100),
    "numbers of a megabyte": text(f"1 2 {'3' * 1_000_000}\n" * 3),
    "commas, a megabyte of them": text("," * 1_000_000, "\n"),
    "brackets, a megabyte of them": text("[" * 1_000_000, "\n"),
    "quotes, a megabyte of them": text("'" * 1_000_000, "\n"),
    "1e999 alone": text("1e999 1e999 1e999\n" * 64),
    "null bytes behind": text(ROWS, bytes(8)),
    "null bytes between": text(ROWS.replace(" ", "\0")),
    "UTF-16 cut in a character": text(ROWS.encode("utf-16")[:-1][:101]),
    "UTF-32 of nothing": text(b"\xff\xfe\0\0"),
    "a mark of UTF-8 alone": text(b"\xef\xbb\xbf"),
    "blank lines": text("\n" * 100_000),
    "comments": text("# 1 2 3\n" * 1000),
    "words": text("one two three\n" * 64),
    "two columns": text("1 2\n" * 64),
    "a word in row 5000": text("1 2 3\n4 5 6\n" * 2500, "x y z\n"),
    "a row more in width, late": text("1 2 3\n4 5 6\n" * 2500, "1 2 3 4\n"),
    "more points announced than there are": text("99\n", ROWS),
    "commas for columns and decimals": text("0,5,1,5,02,5\n" * 64),
    "a grid": text("ncols 4\nnrows 4\n", ROWS),
    "a page of HTML": text("<html><body>404</body></html>"),
    "json nested 10,000 deep": text("[" * 10_000, "1,2,3", "]" * 10_000),
    "escape sequences": text("\x1b[31m \x1b[2J \x1b]0;x\x07\n" * 64),
    "a pickle": lambda path: path.write_bytes(pickle.dumps(Pickle(path))),
    "compressed": lambda path: path.write_bytes(gzip.compress(ROWS.encode())),
}
TEXT_FINE = {
    "UTF-16": text(ROWS.encode("utf-16")),
    "1e999 among good rows": text(ROWS, "1e999 1 2\nnan 1 2\n"),
    "decimal commas": text(ROWS.replace(".", ",").replace(" ", ";")),
}


# ---------------------------------------------------------------- json of runs
CONFIG = {
    "task": ("../../x", 5, None, ["M_S"], DROP),
    "data": (7, {"a": 1}, ["../../../x", "../y"], "../../x", DROP),
    "points": (10**12, "20", 0, DROP),
    "unit_sphere": ("yes",),
    "up": ("q",),
    "seed": ("x",),
    "beta": (float("nan"),),
    "ssl": ("jigsaw", 3),
}
WHOLE = {
    "empty": "",
    "null": "null",
    "a list": "[]",
    "a number": "1e999",
    "a text": '"x"',
    "an empty object": "{}",
    "cut short": '{"stage1": {"args"',
    "nested 10,000 deep": '{"stage1": ' + "[" * 10_000 + "]" * 10_000 + "}",
    "not UTF-8": b'{"stage1": "\xff\xfe"}',
    "UTF-16": "{}".encode("utf-16"),
    "a number of 10,000 digits": '{"stage1": ' + "9" * 10_000 + "}",
    "stages that are numbers": '{"stage1": 1, "stage2": 2}',
    "stages that are empty": '{"stage1": {}, "stage2": {}}',
    "stages that are lists": '{"stage1": [], "stage2": []}',
}


def rewrite(name, change):
    """Make a run whose json file of that name is changed by a function of its values, or is this text."""

    def make(folder, out):
        path = copy_run(folder, out) / name
        if callable(change):
            path.write_text(json.dumps(change(json.loads(path.read_text()))))
        else:
            path.write_bytes(change if isinstance(change, bytes) else change.encode())

    return make


def shown(value):
    return "removed" if value is DROP else repr(value)[:20]


RESULT = {
    ("task",): ("M_X", 5, None, "seg_F_A", ["x"]),
    ("per_point",): (True, "no", None),
    ("data",): (None, "x", {"name": "x"}),
    ("data", "name"): (5, "\x1b[31mred", "a\nb", "\ud800"),
    ("n_test",): ("x", None, -1),
    ("seconds",): ("x", None),
    ("versions",): ({}, None, 3),
    ("stage1",): (None, 3, [], {}, "x"),
    ("stage1", "flags"): ([], {}, 3, "x"),
    ("stage1", "flags", "task"): ("M_X", ["M_S"], 3),
    ("stage1", "flags", "beta"): ("x", None, [1]),
    ("stage1", "flags", "seed"): ("x", -1),
    ("stage1", "curve"): ([], {}, [1], [{}], [{"step": "x"}], None),
    ("stage1", "last"): (None, [], {"acc": "x"}, {"acc": None, "mean_acc": 1, "step": 1}),
    ("stage1", "label_free"): (3, {}),
}
FIGURES = {
    "fig3": {
        ("classes",): (None, 3, ["a"], [1, 2]),
        ("stage1", "confusion"): (None, [], [[1]], [[1, 2], [3]], [["a", "b"], ["c", "d"]], [[1, 2], [3, -4]]),
        ("stage1", "per_class"): (None, 3),
    },
    "fig8": {("beta",): ("x", None), ("alpha",): ("x", None), ("seed",): (None, "x")},
    "validators": {
        ("stage1", "curve"): ([{"step": 0, "source": 1, "target": 1}], [{"step": 2, "source": 1, "target": 1}]),
        ("stage1", "last", "step"): ("x", -1),
    },
}


ELSEWHERE = {  # what the line names, where that is not config.json itself
    "config: an empty object": "run: no stage",
    "config, task: '../../x'": "--task",
    "config, data: '../../x'": "--data ../../x",
    "config, data: ['../../../x', '../y": "--target ../y",
}
DAMAGED = {("data",): 3, ("data", "fingerprint"): 7, ("seconds",): "x", ("versions",): None, ("classes",): 5}


def jsons():
    edits = {f"config: {name}": content for name, content in WHOLE.items()}
    found = [(("args", name), value) for name, values in CONFIG.items() for value in values]
    for path, value in [*found, *DAMAGED.items()]:
        change = lambda config, path=path, value=value: nested(config, ("stage1", *path), value)
        edits[f"config, {path[-1]}: {shown(value)}"] = change
    for name, change in edits.items():
        where = ELSEWHERE.get(name, "config.json")
        yield Case("json", name, rewrite("config.json", change), evaluation.main, ["--run", "@out/run"], where)
    absent = ["--run", "@base/nowhere"]
    yield Case("json", "config: absent", lambda folder, out: None, evaluation.main, absent, "config.json")
    edits = {(f"result: {name}", what): content for name, content in WHOLE.items() for what in ("table", "fig3")}
    for what, changes in {"table": RESULT, **FIGURES}.items():
        for path, value in [(path, value) for path, values in changes.items() for value in values]:
            change = lambda result, path=path, value=value: nested(result, path, value)
            edits[f"result, {' '.join(path)}: {shown(value)}", what] = change
    for (name, what), change in edits.items():
        argv = [what, "@out/run", "--out", "@out/x"]
        yield Case("json", f"{name} ({what})", rewrite("result.json", change), paper.main, argv, "result.json")


CLAIM = {"figure": "fig1", "args": {"task": "M_S", "ssl": "gast"}, "seed": 0, "n": 3, "data": "x", "commit": "y"}
SERIES = {"spearman": 0.1, "spearman_of_differences": None}
CLAIM |= {"statistics": {"trained": True, "source_accuracy": 0.9, "train": SERIES, "eval": SERIES}}
CLAIMS = {
    ("args",): (None, 3, {}),
    ("seed",): (None, [1]),
    ("data",): (None, "\x1b[2J"),
    ("statistics", "train"): (None, 3, {}),
    ("statistics", "source_accuracy"): ("x", None),
    ("statistics", "train", "spearman"): ("x", [1]),
}


def claims():
    argv = ["claims", "@in/claim.json", "--out", "@out/x"]
    for path, values in CLAIMS.items():
        for value in values:
            content = json.dumps(nested(CLAIM, path, value))
            make = lambda folder, out, content=content: (folder / "claim.json").write_text(content)
            yield Case("json", f"claim, {' '.join(path)}: {shown(value)}", make, paper.main, argv, "claim.json")
    for name in ("empty", "a list", "nested 10,000 deep", "not UTF-8"):
        content = WHOLE[name]
        make = lambda folder, out, c=content: text(c)(folder / "claim.json")
        yield Case("json", f"claim: {name}", make, paper.main, argv, "claim.json")
    make = lambda folder, out: (folder / "claim.json").write_text(json.dumps(CLAIM))
    yield Case("json", "claim: as it should be", make, paper.main, argv, fine="gast")
    make = lambda folder, out: sparse(b"{", 3 * HUGE)(folder / "claim.json")
    yield Case("json", "claim: a sparse file of 3 GB", make, paper.main, argv, "claim.json")


# ---------------------------------------------------------------- csv, predictions
HEAD = "step,skewness_train,cos,cos_cls\n"
SOUND = HEAD + "".join(f"{i},{i * i % 41},{i * 3 % 23 - 11},{i * 5 % 19 - 9}\n" for i in range(20))
CSV = {
    "empty": text(""),
    "a head alone": text(HEAD),
    "other columns": text("a,b\n1,2\n"),
    "words": text(HEAD, "a,b,c,d\n" * 9),
    "short rows": text(HEAD, "1\n" * 9),
    "NaN alone": text(HEAD, *(f"{i},nan,nan,nan\n" for i in range(20))),
    "1e999 alone": text(HEAD, *(f"{i},1e999,-1e999,1e999\n" for i in range(20))),
    "one row": text(HEAD, "1,2,3,4\n"),
    "rows all alike": text(HEAD, "1,2,3,4\n" * 20),
    "null bytes": text(HEAD, "1,\0,3,4\n" * 20),
    "binary": text(bytes(range(256))),
    "UTF-16": text(SOUND.encode("utf-16")),
    "a field of a megabyte": text(HEAD, f"1,{'2' * (1 << 20)},3,4\n"),
    "an open quote": text(HEAD, '1,"2,3,4\n' * 20_000),
    "a sparse file of 3 GB": sparse(HEAD.encode(), 3 * HUGE),
    "a folder": lambda path: path.mkdir(),
    "absent": lambda path: None,
}
BESIDE = {
    "a list": "[]",
    "data: a number": '{"data": 3, "seed": 0, "args": {}}',
    "no seed": '{"data": "x", "args": {}}',
}
BESIDE |= {"args: a text": '{"data": "x", "seed": 0, "args": "x"}', "cut": '{"data"', "nested": "[" * 10_000}


def csvs():
    argv = ["anm", "--csv", "@in/fig1.csv", "--out", "@out/x"]
    vague = ("NaN alone", "1e999 alone", "one row", "rows all alike", "short rows")  # read, but say nothing
    for name, write in CSV.items():
        make = lambda folder, out, write=write: write(folder / "fig1.csv")
        yield Case("csv", name, make, paper.main, argv, "--csv" if name not in vague else "additive-noise model")
    for name, content in BESIDE.items():
        make = lambda folder, out, content=content: (
            text(SOUND)(folder / "fig1.csv"),
            text(content)(folder / "fig1.json"),
        )
        yield Case("csv", f"the .json beside: {name}", make, paper.main, argv, "fig1.json")
    yield Case(
        "csv", "as it should be", lambda folder, out: text(SOUND)(folder / "fig1.csv"), paper.main, argv, fine="HSIC"
    )


def preds(change):
    """Make a run whose predictions are changed: a function of {name: array}, or of the path."""

    def make(folder, out):
        path = copy_run(folder, out) / "preds1.npz"
        with np.load(path) as kept:
            found = change(dict(kept), path)
        if found is not None:
            np.savez_compressed(path, **found)

    return make


PREDS = {
    "no target": lambda p, path: {k: v for k, v in p.items() if k != "target"},
    "no step": lambda p, path: {k: v for k, v in p.items() if k != "step"},
    "of other clouds": lambda p, path: p | {"target": p["target"][:, :1]},
    "of other moments": lambda p, path: p | {"target": p["target"][:1]},
    "classes that are none": lambda p, path: p | {"target": p["target"] + 200},
    "classes below 0": lambda p, path: p | {"target": p["target"].astype(int) - 5},
    "classes that are floats": lambda p, path: p | {"source": p["source"] + 0.5},
    "classes that are text": lambda p, path: p | {"source": p["source"].astype("U3")},
    "logits of other classes": lambda p, path: p | {"logits": p["logits"][..., :1]},
    "logits that are NaN": lambda p, path: p | {"logits": p["logits"] * np.nan},
    "logits without clusters": lambda p, path: {k: v for k, v in p.items() if k != "cluster"},
    "no moment": lambda p, path: {k: v[:0] for k, v in p.items()},
    "steps that fall": lambda p, path: p | {"step": p["step"][::-1]},
    "a pickle that runs code": lambda p, path: NPZ["a pickle that runs code"](path) and None,
    "a bomb of 1 GB": lambda p, path: bomb(npy(GOOD)[:128], "target.npy")(path),
    "terabytes claimed": lambda p, path: NPZ["terabytes claimed"](path),
    "not a zip": lambda p, path: text("x")(path) and None,
    "absent": lambda p, path: path.unlink(),
}


# ---------------------------------------------------------------- archives
def tar(members, mode="w:gz"):
    """A tar of (TarInfo, bytes) pairs."""

    def write(path):
        with tarfile.open(path, mode) as file:
            for info, content in members:
                info.size = info.size or len(content)
                file.addfile(info, io.BytesIO(content) if content else None)

    return write


def member(name, kind=tarfile.REGTYPE, content=b"x", **more):
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in more.items():
        setattr(info, key, value)
    return info, content if kind == tarfile.REGTYPE else b""


def whole_set(folder):
    """{name: bytes} of the tiny set."""
    root = base_of(folder) / "set"
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def beside(extra, tarred):
    """An archive of the tiny set and of further members."""

    def write(path):
        good = whole_set(path.parent)
        if tarred:
            return tar([*(member(name, content=content) for name, content in good.items()), *extra])(path)
        return zipped([*good.items(), *extra])(path)

    return write


def zip_mode(name, mode, content=b"../../x"):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info, content


def long_header(kind):
    """A .tar.gz whose first header describes the next member with HUGE bytes."""

    def write(path):
        info = tarfile.TarInfo("x")
        info.type, info.size = kind, HUGE
        with gzip.open(path, "wb", 1) as file:
            file.write(info.tobuf(tarfile.GNU_FORMAT))
            for _ in range(HUGE >> 24):
                file.write(bytes(1 << 24))

    return write


def tar_bomb(opener):
    def write(path):
        info = tarfile.TarInfo("PointDA_data/modelnet/x.npy")
        info.size = HUGE
        with opener(path) as file:
            file.write(info.tobuf(tarfile.GNU_FORMAT))
            for _ in range(HUGE >> 24):
                file.write(bytes(1 << 24))

    return write


INSIDE = "PointDA_data/modelnet/"
NAMES = ("../evil", f"{INSIDE}../../../evil", "/evil", f"{INSIDE}..\\..\\evil", "C:\\evil", "\\evil")
ARCHIVES = {f"zip: {name!r}": beside([(name, b"x")], False) for name in NAMES}
ARCHIVES |= {f"tar: {name!r}": beside([member(name)], True) for name in NAMES}
ARCHIVES |= {
    "zip: a link": beside([zip_mode(INSIDE + "l", 0o120777)], False),
    "zip: a device": beside([zip_mode(INSIDE + "d", 0o060777)], False),
    "zip: a pipe": beside([zip_mode(INSIDE + "p", 0o010777)], False),
    "zip: a name twice": beside([(INSIDE + "x", b"1"), (INSIDE + "x", b"2")], False),
    "zip: a file that is also a folder": beside([(INSIDE + "x", b"1"), (INSIDE + "x/y", b"2")], False),
    "zip: a name of 300 characters": beside([(INSIDE + "x" * 300, b"1")], False),
    "zip: a thousand folders deep": beside([("d/" * 3000 + "x", b"1")], False),
    "zip: a bomb": bomb(b"", INSIDE + "x.npy"),
    "zip: a bomb of LZMA": bomb(b"", INSIDE + "x.npy", zipfile.ZIP_LZMA),
    "zip: a bomb of bzip2": bomb(b"", INSIDE + "x.npy", zipfile.ZIP_BZIP2),
    "zip: empty": zipped({}),
    "zip: not the set": zipped({"readme": b"x"}),
    "zip: clouds of text": lambda path: zipped({k: b"x" for k in whole_set(path.parent)})(path),
    "zip: clouds that run code": lambda path: (
        save_pickle(path),
        zipped({k: path.read_bytes() for k in whole_set(path.parent)})(path),
    ),
    "tar: a link": beside([member(INSIDE + "l", tarfile.SYMTYPE, linkname="/etc/passwd")], True),
    "tar: a hard link": beside([member(INSIDE + "l", tarfile.LNKTYPE, linkname="../../evil")], True),
    "tar: a link, then a member through it": beside(
        [member(INSIDE + "l", tarfile.SYMTYPE, linkname="../.."), member(INSIDE + "l/evil")], True
    ),
    "tar: a device": beside([member(INSIDE + "d", tarfile.CHRTYPE, devmajor=1, devminor=5)], True),
    "tar: a pipe": beside([member(INSIDE + "p", tarfile.FIFOTYPE)], True),
    "tar: a name twice": beside([member(INSIDE + "x"), member(INSIDE + "x")], True),
    "tar: a sparse member of terabytes": beside([member(INSIDE + "s", tarfile.GNUTYPE_SPARSE, size=1 << 40)], True),
    "tar: a bomb": tar_bomb(lambda path: gzip.open(path, "wb", 1)),
    "tar: a bomb of LZMA": tar_bomb(lambda path: lzma.open(path, "wb", preset=0)),
    "tar: a long name of 1 GB": long_header(tarfile.GNUTYPE_LONGNAME),
    "tar: an extended header of 1 GB": long_header(tarfile.XHDTYPE),
    "tar: a global header of 1 GB": long_header(tarfile.XGLTYPE),
    "tar: truncated": lambda path: (beside([], True)(path), os.truncate(path, 3000)),
    "zip: truncated": lambda path: (beside([], False)(path), os.truncate(path, 3000)),
    "a page of HTML": text("<html>quota exceeded</html>"),
    "empty": text(""),
    "a folder": lambda path: path.mkdir(),
    "absent": lambda path: None,
}
ARCHIVES_FINE = {"zip: the set": beside([], False), "tar: the set": beside([], True)}
ARCHIVES_FINE |= {"zip: with a file whose name has escapes": beside([("\x1b[31m\n", b"x")], False)}


def save_pickle(path):
    with open(path, "wb") as file:
        np.save(file, np.array([Pickle(path)], object), allow_pickle=True)


def archives():
    for name, write in (ARCHIVES | ARCHIVES_FINE).items():
        make = lambda folder, out, write=write: write(folder / "set.archive")
        where = "0.npy" if "clouds" in name else "set.archive"
        fine = "data name: custom" if name in ARCHIVES_FINE else ""
        yield Case("archive", name, make, download.main, ["@out/data", "--unpack", "@in/set.archive"], where, fine)
    nothing = lambda folder, out: (out / "file").write_text("x")
    for name, argv, where in (
        ("the folder is a file", ["@out/file", "--unpack", "@base/good.npy"], "file"),
        ("the folder cannot be", ["/proc/nowhere", "--unpack", "@base/good.npy"], "/proc/nowhere"),
        ("checking a folder without a set", ["@out", "--check"], "PointDA_data"),
        ("checking a file", ["@out/file", "--check"], "file"),
    ):
        yield Case("archive", name, nothing, download.main, argv, where)


# ---------------------------------------------------------------- names of files and classes
ODD = {
    "a newline": "a\nb",
    "escape sequences": "\x1b[31mred\x1b[2J",
    "a bell": "a\x07b",
    "a carriage return": "a\rerror: b",
}
ODD |= {"a turn of the line": "a\u202eb", "no text": os.fsdecode(b"a\xffb")}
SIGHT = {"beyond ASCII": "стул-椅子-ü", "200 characters": "x" * 200, "a leading dash": "-x", "a percent sign": "%s{0}"}


def names(said):
    for what, name in {**ODD, **SIGHT}.items():
        seen = lambda folder, out, name=name: save(GOOD)(folder / f"{name}.npy")
        argv = [f"@in/{name}.npy", "--ckpt", "@base/run/stage1.pt", "--out", "@out/x"]
        yield Case("names", f"a cloud's: {what}", seen, my_cloud.main, argv, fine="1 clouds")
        alone = [f"@in/{name}.npy", "--ckpt", "@base/run/stage1.pt"]
        yield Case("names", f"a cloud's, alone: {what}", seen, my_cloud.main, alone, fine=said)
        bad = lambda folder, out, name=name: text("x")(folder / f"{name}.npy")
        yield Case("names", f"a damaged cloud's: {what}", bad, my_cloud.main, alone, ".npy")
        folders = lambda folder, out, name=name: class_folder(folder / "models", name)
        argv = ["--source", "@in/models", "--target", "@base/scans", *TRAIN, "--out", "@out/run"]
        fine = "source source: train" if what in SIGHT else ""
        yield Case(
            "names", f"a class's: {what}", folders, stage1_ssl.main, argv, "characters that cannot be shown", fine
        )
        targets = lambda folder, out, name=name: class_folder(folder / name, "lamp")
        argv = ["--source", "@base/models", "--target", f"@in/{name}", *TRAIN, "--out", "@out/run"]
        yield Case("names", f"the target's folder: {what}", targets, stage1_ssl.main, argv, fine="target target: train")
    for what, name in ODD.items():
        argv = ["--source", "@base/models", "--target", "@base/scans", *TRAIN, "--out", f"@out/{name}"]
        yield Case("names", f"--out: {what}", lambda folder, out: None, stage1_ssl.main, argv, "--out")
    argv = ["--source", "@base/models", "--target", "@base/scans", *TRAIN, "--out", f"@out/{'x' * 5000}"]
    yield Case("names", "--out: 5000 characters", lambda folder, out: None, stage1_ssl.main, argv, "--out")


def class_folder(root, name, clouds=5):
    """Two classes: chair and one of that name."""
    for each, count in (("chair", 5), (name, clouds)):
        (root / each).mkdir(parents=True)
        for i in range(count):
            save(GOOD * [1, 1, 1 + i] + i)(root / each / f"{i}.npy")


# ---------------------------------------------------------------- flags
NUMBERS = {
    "--steps": ("0", "-1", "1e3", "nan", "", "9" * 30, "9" * 5000, "1.5", "ten"),
    "--beta": ("nan", "inf", "-0.1", "1.1", "0,5", ""),
    "--alpha": ("nan", "inf", "-1", "1e308", "x"),
    "--points": ("1", "0", "-20", "1000000000000", "nan", "20.5"),
    "--batch-size": ("0", "2", "5", "-4", "1000000000000"),
    "--eval-every": ("0", "-1", "nan", "9" * 30),
    "--seed": ("-1", "4294967296", "x", "1e3"),
    "--backbone": ("resnet", "", "dgcnn-seg ", "../x"),
    "--ssl": ("jigsaw", "gast+gast", "", "none+pcm+pcm"),
    "--select": ("best", "", "LOW"),
    "--score": ("luck", ""),
    "--measure": ("never", ""),
    "--mtl": ("product", "", "../x"),
    "--up": ("q", "", "Z"),
    "--target-up": ("q", ""),
    "--device": ("tpu", "cuda:99", ""),
    "--nonsense": ("1",),
}
ACCEPTED = {
    "more points than a cloud has": ["--points", "64"],
    "a batch larger than the data": ["--batch-size", "40"],
    "one step, evaluated every billion": ["--steps", "1", "--eval-every", "1000000000"],
    "beta 0": ["--beta", "0"],
    "beta 1": ["--beta", "1"],
    "alpha 100": ["--alpha", "100"],
    "a flag twice": ["--steps", "1", "--steps", "2"],
}


def flags():
    nothing = lambda folder, out: (out / "file").write_text("x")
    start = [*OWN, *TRAIN, "--out", "@out/run"]
    for flag, values in NUMBERS.items():
        for value in values:
            name = f"{flag} {value[:20]!r}"
            yield Case("flags", name, nothing, stage1_ssl.main, [*start, f"{flag}={value}"], flag)
    for name, more in ACCEPTED.items():
        yield Case("flags", name, nothing, stage1_ssl.main, [*start, *more], fine="source source: train")
    classes = {"a class of one cloud": (1, True), "a class without a cloud": (0, False)}
    for name, (count, sound) in classes.items():
        make = lambda folder, out, count=count: class_folder(folder / "models", "lamp", count)
        argv = ["--source", "@in/models", "--target", "@base/scans", *TRAIN, "--out", "@out/run"]
        fine = "source source: train" if sound else ""
        yield Case("flags", f"--source: {name}", make, stage1_ssl.main, argv, "--source", fine)
    two = ["--task", "M_SC", "--data", "@base/set"]
    for name, argv, where in (
        ("--source alone", ["--source", "@base/models"], "--source"),
        ("--source is --target", ["--source", "@base/models", "--target", "@base/models"], "--target"),
        (
            "--source is --target by another way",
            ["--source", "@base/models", "--target", "@base/scans/../models"],
            "--target",
        ),
        ("--source: a file", ["--source", "@base/good.npy", "--target", "@base/scans"], "--source"),
        ("--source: absent", ["--source", "@base/nowhere", "--target", "@base/scans"], "--source"),
        ("--source: one class", ["--source", "@base/models/chair", "--target", "@base/scans"], "--source"),
        ("--target: a file", ["--source", "@base/models", "--target", "@base/good.npy"], "--target"),
        ("--target: empty", ["--source", "@base/models", "--target", "@out"], "@out"),
        ("--data: a file", ["--task", "M_SC", "--data", "@base/good.npy"], "good.npy"),
        ("--data: absent", ["--task", "M_SC", "--data", "@base/nowhere"], "nowhere"),
        ("--data: empty", ["--task", "M_SC", "--data", ""], "PointDA_data"),
        ("--data: without the bodies", ["--task", "seg_F_A", "--data", "@base/set", "--ssl", "defrec"], "PointSegDA"),
        ("--task: unknown", ["--task", "M_X", "--data", "@base/set"], "--task"),
        ("--task: empty", ["--task", "", "--data", "@base/set"], "--task"),
        ("--task: own clouds without folders", ["--task", "own_source_target", "--data", "@base/set"], "--data"),
        ("--up with a set that has its frame", [*two, "--up", "y"], "--up"),
        ("--ssl gast for bodies", ["--task", "seg_F_A", "--data", "@base/bodies", "--ssl", "gast"], "--ssl"),
        ("an argument too many", [*two, "more"], "more"),
    ):
        argv = [*[flag for flag in TRAIN if flag not in ("--ssl", "defrec") or "--ssl" not in argv], *argv]
        where = where.replace("@out", "out")
        yield Case("flags", name, nothing, stage1_ssl.main, [*argv, "--out", "@out/run"], where)
    for name, out in (("a file", "@out/file"), ("below a file", "@out/file/x"), ("where nobody may write", "/proc/x")):
        yield Case("flags", f"--out: {name}", nothing, stage1_ssl.main, [*OWN, *TRAIN, "--out", out], "--out")
        argv = ["table", "@base/run", "--out", f"{out}/x"]
        yield Case("flags", f"--out: {name} (paper)", nothing, paper.main, argv, "--out")
    to = ["--out", "@out/two", "--gcn-iters", "2", "--device", "cpu"]
    for name, argv, where in (
        ("a folder", ["@base/run", *to], "base/run"),
        ("absent", ["@base/nowhere.pt", *to], "nowhere.pt"),
        ("last1.pt", ["@base/run/last1.pt", *to], "last1.pt"),
        ("with another task", ["@base/run/stage1.pt", "--task", "M_SC", *to], "--task"),
        ("with --perturb nan", ["@base/run/stage1.pt", "--perturb", "nan", "0", *to], "--perturb"),
        ("with --perturb 1e300", ["@base/run/stage1.pt", "--perturb", "0", "1e300", *to], "--perturb"),
        ("with --gcn-iters -1", ["@base/run/stage1.pt", *to, "--gcn-iters", "-1"], "--gcn-iters"),
        ("with --points 10^12", ["@base/run/stage1.pt", *to, "--points", "1000000000000"], "--points"),
        ("with --out a file", ["@base/run/stage1.pt", *to, "--out", "@out/file"], "--out"),
    ):
        yield Case("flags", f"--init: {name}", nothing, stage2_pseudo.main, ["--init", *argv], where)
    for name, main, argv, where in (
        ("paper without a command", paper.main, [], "COMMAND"),
        ("paper with an unknown command", paper.main, ["fig99"], "fig99"),
        ("paper table of no run", paper.main, ["table", "@base/nowhere", "--out", "@out/x"], "nowhere"),
        ("paper fig5 of an absent checkpoint", paper.main, ["fig5", "--ckpt", "@base/x.pt", "--out", "@out/x"], "x.pt"),
        (
            "paper cells with a seed of text",
            paper.main,
            ["cells", "table1", "--seeds", "x", "--out", "@out/x"],
            "--seeds",
        ),
        ("eval of a file", evaluation.main, ["--run", "@base/good.npy"], "config.json"),
        ("my_cloud of no file", my_cloud.main, ["@base/x.ply", "--ckpt", "@base/run/stage1.pt"], "x.ply"),
        (
            "my_cloud, --label unknown",
            my_cloud.main,
            ["@base/good.npy", "--ckpt", "@base/run/stage1.pt", "--label", "x"],
            "--label",
        ),
        (
            "my_cloud, --points 1",
            my_cloud.main,
            ["@base/good.npy", "--ckpt", "@base/run/stage1.pt", "--points", "1"],
            "--points",
        ),
    ):
        yield Case("flags", name, nothing, main, argv, where)


# ---------------------------------------------------------------- all
def corpus(said):
    """All cases; said: what my_cloud.py prints of the plain cloud."""
    yield from npys(said)
    yield from clouds(".npz", ".npz", NPZ, NPZ_FINE, said)
    for name, change in PREDS.items():
        yield Case(".npz", f"predictions: {name}", preds(change), evaluation.main, ["--run", "@out/run"], "preds1.npz")
    yield from h5s(said)
    yield from pts(said)
    yield from meshes(said)
    yield from clouds("text", ".txt", TEXT, TEXT_FINE, said)
    yield from jsons()
    yield from claims()
    yield from csvs()
    yield from archives()
    yield from names(said)
    yield from flags()
