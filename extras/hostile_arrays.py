"""Inputs of hostile.py, first part: what all need, .npy, .npz, .h5 and .pt.

    base(folder)     # what the commands need beside the input: clouds, tiny data sets, a checkpoint, a finished run

In a command, @in stands for the folder of the case's input, @out for the one that it may write to, @base for base().
"""

import contextlib
import io
import os
import pickle
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch

import eval as evaluation
import stage1_ssl
import stage2_pseudo
from datasets import download, pointda, pointsegda
from engine.base import call
from extras import my_cloud

GOOD = np.random.default_rng(0).integers(-64, 64, (64, 3)) / 16  # exact in every type and in text
HUGE = 1 << 30  # bytes that a bomb unpacks to
TRAIN = "--backbone pointnet --ssl defrec --steps 2 --points 20 --batch-size 4 --device cpu".split()
OWN = "--source", "@base/models", "--target", "@base/scans"


@dataclass
class Case:
    """make(in, out) writes the input; names: what the one line has to name; fine: what is printed if it is accepted."""

    kind: str
    name: str
    make: Callable
    main: Callable
    argv: list
    names: str = ""
    fine: str = ""


def base_of(folder):
    return folder.parent.parent / "base"


# ---------------------------------------------------------------- what the commands need beside the input
def base(folder):
    """Clouds of two classes, scans, both official layouts, and a finished run of stage 1 with its result."""
    rng = np.random.default_rng(1)
    for name, count in (("models/chair", 5), ("models/lamp", 5), ("scans", 5)):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            np.save(folder / name / f"{i}.npy", rng.normal(size=(32, 3)) * [1, 1, 1 + (name == "models/lamp")])
    for domain in ("modelnet", "shapenet"):
        for path in [folder / "set/PointDA_data" / domain / c / s for c in pointda.CLASSES for s in pointda.SPLITS]:
            path.mkdir(parents=True)
            np.save(path / "0.npy", rng.normal(size=(32, 3)).astype(np.float32))
    scans = folder / "set/PointDA_data/scannet"
    scans.mkdir()
    for split in pointda.SPLITS:
        with h5py.File(scans / f"{split}_0.h5", "w") as file:
            file["data"], file["label"] = rng.normal(size=(10, 32, 6)).astype(np.float32), np.arange(10)
    for split in pointsegda.SPLITS:
        path = folder / "bodies/PointSegDA/faust" / split
        path.mkdir(parents=True)
        for i in range(2):
            np.save(path / f"{i}.npy", np.column_stack([rng.normal(size=(32, 3)), 1 + np.arange(32) % 8]))
    run = folder / "run"
    argv = "--source", folder / "models", "--target", folder / "models/../labelled"
    shutil.copytree(folder / "models", folder / "labelled")
    np.save(folder / "labelled/chair/0.npy", rng.normal(size=(32, 3)))
    call(stage1_ssl.main, *argv, *TRAIN, "--out", run)
    call(evaluation.main, "--run", run)
    np.save(folder / "good.npy", GOOD)
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.chdir(folder):
        call(my_cloud.main, folder / "good.npy", "--ckpt", run / "stage1.pt")
    (folder / "said").write_text(said.getvalue().splitlines()[0].split(": ", 1)[1])


def clouds(kind, ending, bad, fine, said):
    """Cases of files with one cloud each, name -> write(path), given to my_cloud.py."""
    path = f"cloud{ending}"
    for name, write in (bad | fine).items():
        make = lambda folder, out, write=write: write(folder / path)
        argv = [f"@in/{path}", "--ckpt", "@base/run/stage1.pt"]
        yield Case(kind, name, make, my_cloud.main, argv, path, said if name in fine else "")


def in_set(kind, part, bad, fine={}):
    """The same of one file of an official layout, at @in/set/PART; its folder is a copy, all else are links."""
    root, bodies = f"{part.split('/')[0]}", part.startswith("PointSegDA")

    def make(folder, out, write):
        whole = base_of(folder) / ("bodies" if bodies else "set")
        path = folder / "set" / part
        for up in path.parents[: len(Path(part).parts)]:
            up.mkdir(parents=True, exist_ok=True)
        for up in path.relative_to(folder / "set").parents:
            for each in (whole / up).iterdir():
                if not (folder / "set" / up / each.name).exists():
                    (folder / "set" / up / each.name).symlink_to(each)
        path.unlink(missing_ok=True)
        write(path)

    for name, write in (bad | fine).items():
        argv = ["@in/set", "--check"]
        text = "data name: custom" if not bodies else "faust: train 2"
        made = lambda folder, out, write=write: make(folder, out, write)
        yield Case(kind, f"{name} ({root})", made, download.main, argv, Path(part).name, text if name in fine else "")


# ---------------------------------------------------------------- .npy
class Pickle:
    """What makes a folder called canary beside the file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path.parent / "canary")

    def __reduce__(self):
        return os.mkdir, (self.path,)


def save(array):
    return lambda path: path.open("wb").write(npy(array))


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def pickled(path):
    with open(path, "wb") as file:
        np.save(file, np.array([Pickle(path)] * 3, object), allow_pickle=True)


def header(text, body=b"", version=1, length=None):
    """A .npy whose header is this text."""
    text = text.encode() + b"\n"
    size = struct.pack("<H" if version == 1 else "<I", len(text) if length is None else length)
    return lambda path: path.write_bytes(b"\x93NUMPY" + bytes([version, 0]) + size + text + body)


def claims(shape, descr="<f8", body=bytes(100), order=False):
    return header(repr({"descr": descr, "fortran_order": order, "shape": shape}), body)


def sparse(start, size):
    """A file of so many bytes that takes no room: it begins with these, all else are zeros."""

    def write(path):
        path.write_bytes(start)
        os.truncate(path, size)

    return write


def spoilt(value):
    array = GOOD.copy()
    array[:] = value
    return save(array)


def head_of(shape, descr="<f8"):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


RECORD = np.zeros(64, [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("größe", "<i2")])
for axis, values in zip("xyz", GOOD.T):
    RECORD[axis] = values
NPY = {
    "pickled objects that run code": pickled,
    "object type without a pickle": claims((64, 3), "|O"),
    "terabytes claimed": claims((1 << 45, 3)),
    "gigabytes claimed": claims((10**8, 3)),
    "a shape that overflows": claims((1 << 62, 1 << 62, 3)),
    "a negative shape": claims((-1, 3)),
    "a shape of text": claims(("64", 3)),
    "a shape of floats": claims((64.0, 3)),
    "a thousand axes": claims((1,) * 1000 + (64, 3)),
    "zero bytes a number, claimed in billions": claims((1 << 40, 3), "<U0"),
    "brackets nested deep": header("(" * 9000 + ")" * 9000),
    "an expression that runs code": header("{'descr': __import__('os').mkdir('canary'), 'shape': (3,)}"),
    "a header of 4 GB claimed": header("{}", version=2, length=(1 << 32) - 1),
    "a header without its end": lambda path: path.write_bytes(npy(GOOD)[:40]),
    "a header that is no dictionary": header("[1, 2, 3]"),
    "wrong magic": lambda path: path.write_bytes(b"\x93NUMPZ" + npy(GOOD)[6:]),
    "version 99": lambda path: path.write_bytes(b"\x93NUMPY\x63\x00" + npy(GOOD)[8:]),
    "truncated": lambda path: path.write_bytes(npy(GOOD)[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "magic alone": lambda path: path.write_bytes(b"\x93NUMPY"),
    "complex": save(GOOD * 1j),
    "records without x, y, z": save(np.zeros(64, [("a", "f4"), ("b", "f4"), ("c", "f4")])),
    "records of records": save(np.zeros(64, [("x", [("x", "f4")]), ("y", "f4"), ("z", "f4")])),
    "text": save(GOOD.astype("U8")),
    "bytes": save(GOOD.astype("S8")),
    "dates": save(GOOD.astype("i8").astype("M8[s]")),
    "truth values": save(GOOD > 0),
    "no axis": save(np.float64(3)),
    "one axis": save(GOOD.ravel()),
    "no point": save(GOOD[:0]),
    "one point": save(GOOD[:1]),
    "equal points": spoilt(1.0),
    "NaN alone": spoilt(np.nan),
    "Inf alone": spoilt(-np.inf),
    "beyond 1e15 alone": save(GOOD * 1e300),
    "float16 that overflowed": save(np.full((64, 3), np.inf, np.float16)),
    "denormals": save(GOOD * 5e-324 * 16),
    "points within 1e-12": save(GOOD * 1e-12),
    "a folder": lambda path: path.mkdir(),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a sparse file of 3 GB, zeros": sparse(head_of((1 << 27, 3)), 3 * HUGE + 128),
}
NPY_FINE = {
    "Fortran order": save(np.asfortranarray(GOOD)),
    "big-endian": save(GOOD.astype(">f8")),
    "float16": save(GOOD.astype(np.float16)),
    "long double": save(GOOD.astype(np.longdouble)),
    "a further axis of length 1": save(GOOD[None]),
    "whole numbers": save((GOOD * 16).astype(np.int16)),
    "bytes behind the array": lambda path: path.write_bytes(npy(GOOD) + b"more"),
    "records with a name beyond ASCII": save(RECORD),
}
SET_ONLY = {"a further axis of length 1": save(GOOD[None]), "records with a name beyond ASCII": save(RECORD)}


def npys(said):
    yield from clouds(".npy", ".npy", NPY, NPY_FINE, said)
    bad = {k: v for k, v in NPY.items() if k not in ("a folder",)}
    fine = {name: write for name, write in NPY_FINE.items() if name not in SET_ONLY}
    yield from in_set(".npy", "PointDA_data/modelnet/chair/train/0.npy", bad | SET_ONLY, fine)
    body = np.column_stack([GOOD, 1 + np.arange(64) % 8])
    odd = {f"label {v}": body * [1, 1, 1, 0] + [0, 0, 0, v] for v in (0, 9, 1.5, np.nan, np.inf, 1e300, -1)}
    some = {name: NPY[name] for name in ("pickled objects that run code", "terabytes claimed", "complex", "denormals")}
    whole = {"Fortran order": save(np.asfortranarray(body)), "float16": save(body.astype(np.float16))}
    yield from in_set(".npy", "PointSegDA/faust/train/0.npy", some | {k: save(v) for k, v in odd.items()}, whole)


# ---------------------------------------------------------------- .npz
def zipped(members, compression=zipfile.ZIP_STORED):
    """A zip of {name: bytes}; a list of pairs may hold a name twice."""

    def write(path):
        with contextlib.suppress(UserWarning), zipfile.ZipFile(path, "w", compression) as file:
            for name, content in members.items() if isinstance(members, dict) else members:
                file.writestr(name, content)

    return write


def bomb(start, name="points.npy", compression=zipfile.ZIP_DEFLATED):
    """A zip with one member: `start`, then HUGE zeros."""

    def write(path):
        with zipfile.ZipFile(path, "w", compression, compresslevel=1) as file, file.open(name, "w") as member:
            member.write(start)
            for _ in range(HUGE >> 24):
                member.write(bytes(1 << 24))

    return write


def patched(write, old, new):
    """The same file with bytes replaced."""

    def change(path):
        write(path)
        path.write_bytes(path.read_bytes().replace(old, new))

    return change


def npz_pickled(path):
    pickled(path)
    zipped({"points.npy": path.read_bytes()})(path)


PLAIN = {"points.npy": npy(GOOD)}
NPZ = {
    "a pickle that runs code": npz_pickled,
    "a bomb of 1 GB": bomb(head_of((HUGE // 24, 3))),
    "a bomb behind a small header": bomb(head_of((64, 3)), compression=zipfile.ZIP_LZMA),
    "a bomb of bzip2": bomb(head_of((64, 3)), compression=zipfile.ZIP_BZIP2),
    "terabytes claimed": zipped({"points.npy": head_of((1 << 40, 3)) + bytes(100)}),
    "gigabytes claimed": zipped({"points.npy": head_of((10**8, 3)) + bytes(100)}, zipfile.ZIP_DEFLATED),
    "no array": zipped({}),
    "no array of numbers": zipped({"points.npy": npy(GOOD.astype("U4"))}),
    "no .npy in it": zipped({"readme.txt": b"1 2 3"}),
    "several unknown arrays": zipped({"a.npy": npy(GOOD), "b.npy": npy(GOOD)}),
    "twenty thousand arrays": zipped({f"a{i}.npy": npy(GOOD[:4]) for i in range(20_000)}),
    "x, y, z of different lengths": zipped({f"{c}.npy": npy(np.arange(60 + i)) for i, c in enumerate("xyz")}),
    "not a zip": lambda path: path.write_bytes(b"PK\x03\x04" + bytes(500)),
    "its end record alone": lambda path: path.write_bytes(b"PK\x05\x06" + bytes(18)),
    "truncated": lambda path: (zipped(PLAIN)(path), os.truncate(path, 900)),
    "a wrong checksum": patched(zipped(PLAIN), npy(GOOD)[-16:], b"8" * 16),
    "an unknown way to pack": patched(zipped(PLAIN), b"\x14\x00\x00\x00\x00\x00", b"\x14\x00\x00\x00\x63\x00"),
    "encrypted, it says": patched(zipped(PLAIN), b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01"),
    "a zip in a zip": lambda path: (zipped(PLAIN)(path), zipped({"points.npy": path.read_bytes()})(path)),
}
NPZ_FINE = {
    "members that climb out": zipped({"../../points.npy": npy(GOOD)}),
    "an absolute member": zipped({"/points.npy": npy(GOOD)}),
    "packed": zipped(PLAIN, zipfile.ZIP_DEFLATED),
    "bytes before and behind": lambda path: (zipped(PLAIN)(path), path.write_bytes(path.read_bytes())),
}


# ---------------------------------------------------------------- .h5
def h5(build):
    def write(path):
        with h5py.File(path, "w") as file:
            build(file, path)

    return write


def other(path, name="points", array=GOOD):
    """Another .h5 beside, whose content is nobody's business."""
    with h5py.File(path.with_name("other.h5"), "w") as file:
        file[name] = array
    return "other.h5"


def virtual(name, array):
    def build(file, path):
        layout = h5py.VirtualLayout(array.shape, array.dtype)
        layout[...] = h5py.VirtualSource(other(path, name, array), name, shape=array.shape)
        file.create_virtual_dataset(name, layout)

    return build


def external(name, array):
    def build(file, path):
        path.with_name("secret").write_bytes(array.tobytes())
        where = [(str(path.with_name("secret")), 0, array.nbytes)]
        file.create_dataset(name, array.shape, array.dtype, external=where)

    return build


def packed_zeros(name, shape, dtype="f8"):
    def build(file, path):
        chunk = (1 << 20, *shape[1:]) if len(shape) == 2 else (1 << 10, *shape[1:])
        array = file.create_dataset(name, shape, dtype, chunks=chunk, compression="gzip", compression_opts=1)
        block = zlib.compress(bytes(int(np.prod(chunk)) * array.dtype.itemsize), 1)
        for a in range(0, shape[0], chunk[0]):
            array.id.write_direct_chunk((a,) + (0,) * (len(shape) - 1), block)

    return build


def typed(name, shape, dtype):
    return lambda file, path: file.create_dataset(name, shape, dtype)


def deep(file, path):
    group = file
    for _ in range(3000):
        group = group.create_group("g")


def ring(file, path):
    file.create_group("a")["again"] = file["/"]


def of_h5(name, array):
    """Builders of a damaged data set of that name, whose sound form is `array`."""
    huge = (1 << 40, *array.shape[1:])
    return {
        "an external link": lambda file, path: file.__setitem__(
            name, h5py.ExternalLink(other(path, name, array), name)
        ),
        "a soft link to nowhere": lambda file, path: file.__setitem__(name, h5py.SoftLink("/nowhere")),
        "a soft link to itself": lambda file, path: file.__setitem__(name, h5py.SoftLink(f"/{name}")),
        "a virtual data set of another file": virtual(name, array),
        "stored in another file": external(name, array),
        "terabytes claimed": typed(name, huge, "f8"),
        "terabytes claimed in chunks": lambda f, p: f.create_dataset(name, huge, "f8", chunks=(64, *array.shape[1:])),
        "terabytes of a fill value": lambda f, p: f.create_dataset(name, huge, "f8", chunks=True, fillvalue=1.5),
        "a bomb of zeros": packed_zeros(name, (HUGE // 24, 3) if array.ndim == 2 else (HUGE // 768, 32, 3)),
        "text": typed(name, array.shape, "S4"),
        "text of any length": typed(name, array.shape, h5py.string_dtype()),
        "lists of any length": typed(name, array.shape, h5py.vlen_dtype(np.float64)),
        "references": typed(name, array.shape, h5py.ref_dtype),
        "references of regions": typed(name, array.shape, h5py.regionref_dtype),
        "opaque": typed(name, array.shape, np.dtype("V8")),
        "complex": lambda file, path: file.__setitem__(name, array * 1j),
        "truth values": lambda file, path: file.__setitem__(name, array > 0),
        "records": lambda file, path: file.__setitem__(name, np.zeros(64, [("a", "f8"), ("b", "f8")])),
        "a group in place of data": lambda file, path: file.create_group(name),
        "a type in place of data": lambda file, path: file.__setitem__(name, np.dtype("f8")),
        "no shape": lambda file, path: file.__setitem__(name, h5py.Empty("f8")),
        "one number": lambda file, path: file.__setitem__(name, 1.5),
        "no points": lambda file, path: file.__setitem__(name, array[:0]),
        "NaN alone": lambda file, path: file.__setitem__(name, array * np.nan),
        "a ring of groups": ring,
        "groups nested 3000 deep": deep,
    }


def raw(write):
    """What may befall any kind of file; write(path) makes a sound one."""

    def part(path, share):
        write(path)
        os.truncate(path, int(path.stat().st_size * share))

    def flipped(path):
        write(path)
        content = bytearray(path.read_bytes())
        for i in range(8, len(content), 7):
            content[i] ^= 0xFF
        path.write_bytes(content)

    return {
        "truncated": lambda path: part(path, 0.5),
        "its head alone": lambda path: part(path, 0.02),
        "every seventh byte flipped": flipped,
    }


H5_SOUND = h5(lambda file, path: file.__setitem__("points", GOOD))
H5_FINE = {
    "float16 in chunks": h5(lambda file, path: file.create_dataset("points", data=GOOD.astype("f2"), chunks=(8, 3))),
    "big-endian, in a group": h5(lambda file, path: file.__setitem__("a/points", GOOD.astype(">f4"))),
    "links to elsewhere beside the points": h5(
        lambda f, p: (f.__setitem__("points", GOOD), f.__setitem__("more", h5py.ExternalLink("/etc/passwd", "x")))
    ),
}


def h5s(said):
    one = {name: h5(build) for name, build in of_h5("points", GOOD).items()}
    yield from clouds(".h5", ".h5", one | raw(H5_SOUND), H5_FINE, said)
    scans = np.random.default_rng(2).normal(size=(10, 32, 3))
    with_label = lambda build: h5(lambda file, path: (file.__setitem__("label", np.arange(10)), build(file, path)))
    many = of_h5("data", scans)
    yield from in_set(".h5", "PointDA_data/scannet/train_0.h5", {name: with_label(b) for name, b in many.items()})
    labels = of_h5("label", np.arange(10.0))
    labels["a bomb of zeros"] = lambda f, p: f.create_dataset(
        "label", (1 << 31,), "u1", chunks=(1 << 26,), compression=1
    )
    labels |= {"1e300": lambda file, path: file.__setitem__("label", np.full(10, 1e300))}
    with_data = lambda build: h5(lambda file, path: (file.__setitem__("data", scans), build(file, path)))
    part = "PointDA_data/scannet/test_0.h5"
    yield from in_set(".h5", part, {f"label: {name}": with_data(build) for name, build in labels.items()})
    names = ("an external link", "a virtual data set of another file", "stored in another file", "terabytes claimed")
    names += ("a bomb of zeros", "lists of any length", "a group in place of data", "no points", "NaN alone", "text")
    targets = {f"target's data: {name}": h5(many[name]) for name in names}
    names = ("an external link", "terabytes claimed", "text of any length", "a group in place of data", "records")
    targets |= {f"target's label: {name}": with_data(labels[name]) for name in names}
    targets["target's label: of other clouds"] = with_data(lambda f, p: f.__setitem__("label", np.arange(9) % 2))
    targets["target's label: not the source's classes"] = with_data(lambda f, p: f.__setitem__("label", np.arange(10)))
    for name, write in targets.items():
        make = lambda folder, out, write=write: write(folder / "scans.h5")
        argv = ["--source", "@base/models", "--target", "@in/scans.h5", *TRAIN, "--out", "@out/run"]
        main, names = (stage1_ssl.main, "scans.h5")
        if "label: " in name:  # labels are opened by eval.py alone
            make = lambda folder, out, write=write: (write(folder / "scans.h5"), copy_run(folder, out))
            main, argv = evaluation.main, ["--run", "@out/run", "--data", "@base/models", "@in/scans.h5"]
        yield Case(".h5", name, make, main, argv, names)


# ---------------------------------------------------------------- checkpoints
def copy_run(folder, out, change=None):
    shutil.copytree(base_of(folder) / "run", out / "run")
    return out / "run"


def nested(value, path, new):
    """A copy of nested dictionaries with one value replaced, or removed where it is DROP."""
    if not path:
        return new
    changed = dict(value)
    changed[path[0]] = nested(changed.get(path[0]), path[1:], new)
    if changed[path[0]] is DROP:
        del changed[path[0]]
    return changed


DROP = object()
NESTED = [0]
for _ in range(60):
    NESTED = [NESTED, NESTED]
FLAGS = {  # recorded flags that nobody could have given
    "task": (None, 5, "M_X", "../../x", "seg_F_A", ["M_S"], "\x1b[31mM_S", DROP),
    "backbone": (None, "resnet", ["pointnet"], 7, "dgcnn-seg", "dgcnn", DROP),
    "alpha": (float("nan"), float("inf"), -1, "1", None, 1e300, True, 10**400, DROP),
    "points": (10**12, 0, -1, 20.5, "20", None, True, DROP),
    "up": ("q", None, 3, ["z"], DROP),
    "target_up": ("q", 3),
}
MORE = {  # those that matter where a run goes on from the checkpoint
    "data": (None, 7, ["../../x"], "a\0b", ["/nowhere", "/nowhere2"], {"a": 1}, DROP),
    "ssl": ("jigsaw", "gast+", "", None, 3, DROP),
    "score": ("luck", None, 3),
    "select": ("best", None, 1),
    "measure": ("never", 1),
    "mtl": ("product", None, 5),
    "beta": (float("nan"), 7, -0.1, "0.7", None),
    "batch_size": (3, 0, 10**12, "4", None),
    "steps": (0, -5, 10**30, "many", 2.5),
    "eval_every": (0, -1, "x"),
    "seed": (-1, 2**70, "x", 1.5),
    "unit_sphere": ("yes", 3, None),
}


def edited(*path, new):
    def change(payload):
        return nested(payload, path, new)

    return change


def weight(payload, function):
    name = next(name for name, tensor in payload["student"].items() if tensor.ndim == 2)
    return nested(payload, ("student", name), function(payload["student"][name]))


CONTENT = {
    "not a dictionary": lambda p: [p],
    "a tensor alone": lambda p: torch.zeros(3),
    "no config": lambda p: nested(p, ("config",), DROP),
    "config: a text": lambda p: p | {"config": "x"},
    "config: a list": lambda p: p | {"config": [1]},
    "args: a list": edited("config", "args", new=[1]),
    "args: none": edited("config", "args", new=DROP),
    "classes: none": edited("config", "classes", new=DROP),
    "classes: a number": edited("config", "classes", new=2),
    "classes: numbers": edited("config", "classes", new=[0, 1]),
    "classes: a text": edited("config", "classes", new="ab"),
    "classes: empty": edited("config", "classes", new=[]),
    "classes: one name twice": edited("config", "classes", new=["chair", "chair"]),
    "classes: a thousand": edited("config", "classes", new=[str(i) for i in range(1000)]),
    "classes: three for two": edited("config", "classes", new=["a", "b", "c"]),
    "classes: control characters": edited("config", "classes", new=["\x1b[2J", "b"]),
    "classes: lists in lists, 2^60 of them": edited("config", "classes", new=NESTED),
    "task: lists in lists, 2^60 of them": edited("config", "args", "task", new=NESTED),
    "data: a number": edited("config", "data", new=3),
    "upright: text": edited("config", "data", "upright", new="up"),
    "upright: too short": edited("config", "data", "upright", new=[1.0]),
    "upright: NaN": edited("config", "data", "upright", new=[float("nan")] * 26),
    "student: none": lambda p: nested(p, ("student",), DROP),
    "student: a list": lambda p: p | {"student": [torch.zeros(3)]},
    "student: empty": lambda p: p | {"student": {}},
    "student: numbers": lambda p: p | {"student": dict.fromkeys(p["student"], 1.0)},
    "a weight of another shape": lambda p: weight(p, lambda w: w[:1]),
    "a weight of 10^13 numbers claimed": lambda p: weight(p, lambda w: torch.zeros(1).expand(10**7, 10**6)),
    "a weight that is complex": lambda p: weight(p, lambda w: w * (1 + 1j)),
    "a weight that is sparse": lambda p: weight(p, lambda w: w.to_sparse()),
    "a weight that is quantised": lambda p: weight(p, lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8)),
    "a weight without a place": lambda p: weight(p, lambda w: w.to("meta")),
    "a weight that is NaN": lambda p: weight(p, lambda w: w * float("nan")),
    "a superfluous weight": lambda p: nested(p, ("student", "more"), torch.zeros(3)),
    "a weight too few": lambda p: p | {"student": dict(list(p["student"].items())[1:])},
}


def checkpoint(change):
    def write(path):
        whole = torch.load(base_of(path.parent) / "run/stage1.pt", weights_only=True)
        torch.save(change(whole), path)

    return write


def packed_again(path, huge):
    """The checkpoint with its members deflated; huge: and the first tensor's bytes become HUGE zeros."""
    with (
        zipfile.ZipFile(base_of(path.parent) / "run/stage1.pt") as old,
        zipfile.ZipFile(path, "w", 8, compresslevel=1) as new,
    ):
        for info in old.infolist():
            with new.open(info.filename, "w") as member:
                if huge and info.filename.endswith("data/0"):
                    for _ in range(HUGE >> 24):
                        member.write(bytes(1 << 24))
                else:
                    member.write(old.read(info))


def scripted(path):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(3, 3), torch.zeros(1, 3)), path)


PT = {
    "a pickle that runs code": lambda path: torch.save({"config": Pickle(path)}, path),
    "one among good parts": lambda path: checkpoint(lambda p: p | {"more": Pickle(path)})(path),
    "a bare pickle that runs code": lambda path: path.write_bytes(bare_pickle(path)),
    "of the old form, running code": lambda path: torch.save(Pickle(path), path, _use_new_zipfile_serialization=False),
    "TorchScript": scripted,
    "a plain zip": zipped(PLAIN),
    "an empty zip": zipped({}),
    "packed": lambda path: packed_again(path, False),
    "packed, a bomb": lambda path: packed_again(path, True),
    "text": lambda path: path.write_text("stage1"),
    "empty": lambda path: path.write_bytes(b""),
    "a folder": lambda path: path.mkdir(),
    "absent": lambda path: None,
    "an .npy": save(GOOD),
    "a sparse file of 3 GB, zeros": sparse(b"PK\x03\x04", 3 * HUGE),
}


def bare_pickle(path):
    return pickle.dumps(Pickle(path))


OTHER_MODEL = ("classes: three for two", "student: empty", "backbone: 'dgcnn'", "backbone: 'dgcnn-seg'")
OTHER_MODEL += ("a weight of another shape", "a superfluous weight", "a weight too few")


def pts(said):
    bad = PT | raw(checkpoint(lambda p: p)) | {name: checkpoint(change) for name, change in CONTENT.items()}
    shown = lambda value: "removed" if value is DROP else f"{str(value)[:20]!r}"
    for name, values in FLAGS.items():
        bad |= {f"{name}: {shown(v)}": checkpoint(edited("config", "args", name, new=v)) for v in values}
    for name, write in bad.items():
        make = lambda folder, out, write=write: write(folder / "stage1.pt")
        where = (
            "stage1.pt"
            if name not in ("task: 'M_X'", "task: '../../x'")
            else "--task M_X"
            if "M_X" in name
            else "--task"
        )
        where = "--backbone" if name == "backbone: 'resnet'" else where
        where = "--ckpt" if name in OTHER_MODEL else where
        argv = ["@base/good.npy", "--ckpt", "@in/stage1.pt"]
        yield Case(".pt", name, make, my_cloud.main, argv, where)
    for name, values in MORE.items():
        for value in values:
            write = checkpoint(edited("config", "args", name, new=value))
            make = lambda folder, out, write=write: write(folder / "stage1.pt")
            argv = ["--init", "@in/stage1.pt", "--out", "@out/run", "--gcn-iters", "2", "--device", "cpu"]
            where = "nowhere" if shown(value).startswith("\"['/now") else "--mtl" if value == "product" else "stage1.pt"
            yield Case(".pt", f"{name}: {shown(value)}, to go on from", make, stage2_pseudo.main, argv, where)
