"""Point clouds in files: reading, checking, one size and frame for all of them, and the cache.

Whatever is wrong with a file ends in a UserError that names it. The cache holds the clouds of one split in one file; it
is never needed and never stale: the sizes and times of the files and the code that reads them are part of its key.
"""

import hashlib
import io
from pathlib import Path

import h5py
import numpy as np
import torch

from engine.base import ROOT, UserError, one_line, seed_of, write_atomically

CACHE = ROOT / ".cache"
MOST_POINTS = 2048  # a domain keeps at most this many points of a cloud
PLY_TYPES = {
    "char": "i1",
    "uchar": "u1",
    "short": "i2",
    "ushort": "u2",
    "int": "i4",
    "uint": "u4",
    "float": "f4",
    "double": "f8",
    "int8": "i1",
    "uint8": "u1",
    "int16": "i2",
    "uint16": "u2",
    "int32": "i4",
    "uint32": "u4",
    "float32": "f4",
    "float64": "f8",
}


# ---------------------------------------------------------------- frames and sizes
def normalise(points):
    """Subtract the mean and divide by the largest norm, (..., N, 3): the unit sphere."""
    points = points - points.mean(-2, keepdim=True)
    return points / points.norm(dim=-1, keepdim=True).amax(-2, keepdim=True).clamp_min(1e-12)


def turn_up(points):
    """y up -> z up: (x, y, z) -> (x, -z, y), (..., 3)."""
    return np.stack([points[..., 0], -points[..., 2], points[..., 1]], -1)


def resample(points, P, seed):
    """P of the points (n, 3), all distinct where there are enough, with replacement where not."""
    if len(points) == P:
        return points
    rng = np.random.default_rng(seed)
    return points[rng.choice(len(points), P, replace=len(points) < P)]


def stacked(clouds):
    """Clouds (n_i, 3) as one array (m, P, 3); P is the largest n_i, at most MOST_POINTS."""
    P = min(max(map(len, clouds)), MOST_POINTS)
    return np.stack([resample(points, P, seed_of("resample", i)) for i, points in enumerate(clouds)])


# ---------------------------------------------------------------- reading and checking
def folder(path, remedy):
    """The path, if it is a folder; UserError with the remedy otherwise."""
    if not path.is_dir():
        raise UserError(
            f"{path}: no such folder; {remedy}, or try the built-in shapes with DATA=shapes (--data shapes)"
        )
    return path


def check_cloud(points, where):
    """Finite numbers, [n, >= 3] with n >= 2 and two different points, as float32 [n, 3]; UserError otherwise."""
    if points.ndim != 2 or points.shape[1] < 3 or points.dtype.kind not in "fiu":
        raise UserError(
            f"{where}: has shape {points.shape} of {points.dtype}, not numbers [n, 3 or more]; replace the file"
        )
    with np.errstate(over="ignore"):  # too large becomes Inf
        points = points[:, :3].astype(np.float32)
    if len(points) < 2 or (points == points[0]).all():
        raise UserError(f"{where}: needs at least two different points; remove or replace it")
    if not (np.abs(points) < 1e15).all():  # beyond that a squared norm overflows
        raise UserError(f"{where}: holds NaN, Inf or a coordinate beyond 1e15; remove or replace it")
    return points


def read_npy(path):
    """The array of a .npy file; UserError names one that is not whole."""
    try:
        with open(path, "rb") as file:  # not np.load, which would also open an .npz
            return np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # a damaged header fails in a dozen ways
        raise UserError(f"{path}: not a whole .npy array of numbers ({one_line(error)}); fetch it again") from None


def read_h5(path, read):
    """read(file) of an opened .h5 file; UserError names one that is not whole."""
    try:
        with h5py.File(path, "r") as file:
            return read(file)
    except UserError:
        raise
    except Exception as error:  # a damaged file fails in a dozen ways
        raise UserError(f"{path}: not a whole HDF5 file ({one_line(error)}); fetch it again") from None


def cached(paths, code, read):
    """read() as float32 (n, P, 3), kept in one file for these paths as they are now, where one can be written.

    code: path of the module that `read` belongs to, which decides with this one what is read.
    """
    try:
        stats = [(p.name, p.parent.parent.name, p.stat().st_size, p.stat().st_mtime_ns) for p in paths]
    except OSError as error:  # a link that leads nowhere
        raise UserError(f"{error.filename}: {error.strerror}; fetch it again") from None
    # the name stands for the place, the key for its files and the code: a changed folder replaces its own file
    place = f"{paths[0].resolve().parent} {paths[0].name if paths[0].suffix == '.h5' else ''}"
    source = Path(__file__).read_bytes() + Path(code).read_bytes()
    key = hashlib.sha256(repr((stats, MOST_POINTS)).encode() + source).hexdigest()
    path = CACHE / f"{hashlib.sha256(place.encode()).hexdigest()[:24]}.npz"
    try:
        with np.load(path, allow_pickle=False) as kept:
            if kept["key"].item() == key:
                return kept["points"]  # reading a zip member compares its checksum
    except Exception:  # absent, or damaged in one of a dozen ways: read the files
        pass
    array = read()
    try:
        CACHE.mkdir(exist_ok=True)
        buffer = io.BytesIO()
        np.savez(buffer, key=np.array(key), points=array)
        write_atomically(path, buffer.getvalue())
    except (OSError, UserError):
        pass  # a read-only checkout reads the files each time
    return array


# ---------------------------------------------------------------- what a set holds and is called
def counted(points, labels, C):
    """Clouds of a split: {"total"}, and "per_class" (C counts) where labels (n,) of clouds were opened."""
    if labels is None or labels.ndim != 1:
        return {"total": len(points)}
    return {"total": len(points), "per_class": torch.bincount(torch.as_tensor(labels).cpu(), minlength=C).tolist()}


def counts_text(name, counts):
    """{split: counted(...)} of a domain in one line."""
    text = lambda c: f"{c['total']} {c['per_class']}" if "per_class" in c else str(c["total"])
    return f"{name}: " + ", ".join(f"{split} {text(c)}" for split, c in counts.items())


def set_name(root, name, official):
    """What results call the data: "built-in shapes", the data set's name if its counts are official, or "custom: ...".

    A custom set is called by the first line of a file NAME in the data folder (in the data set's own folder there, if
    that is called as the data set is), or else as the data folder.
    """
    if str(root) == "shapes":
        return "built-in shapes"
    if official:
        return name
    own = Path(root) / name
    note = (own if own.is_dir() else Path(root)) / "NAME"
    return "custom: " + (note.read_text().partition("\n")[0].strip() if note.is_file() else Path(root).resolve().name)


# ---------------------------------------------------------------- one cloud of one's own
def read_cloud(path):
    """Points (N, 3) of a .npy, .ply, .txt or .xyz file, columns 0..2, in the unit sphere; or UserError."""
    readers = {".npy": lambda: np.load(path, allow_pickle=False), ".ply": lambda: _read_ply(path)}
    try:
        array = readers.get(path.suffix.lower(), lambda: np.loadtxt(path, ndmin=2, delimiter=_delimiter(path)))()
        points = np.asarray(array[:, :3], dtype=np.float64)  # map coordinates outgrow the seven digits of float32
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give a .npy, .ply, .txt or .xyz cloud") from None
    except Exception as error:  # a damaged file fails in a dozen ways
        raise UserError(
            f"{path}: not a cloud of numbers, one point a row ({one_line(error)}); give another file"
        ) from None
    sound = points.ndim == 2 and points.shape[1] == 3 and len(points) >= 2 and np.isfinite(points).all()
    if not sound or (points == points[0]).all():
        raise UserError(
            f"{path}: needs finite x, y, z of two different points at least, not an array {points.shape}; "
            "give another file"
        )
    return normalise(torch.from_numpy(points)).float()


def _delimiter(path):
    return "," if "," in path.read_text().partition("\n")[0] else None


def _read_ply(path):
    """x, y, z of the vertices of an ascii or binary .ply whose vertex element comes first."""
    head, end, body = path.read_bytes().partition(b"end_header")
    lines = [line.split() for line in head.decode("ascii").splitlines()]
    form = next((line[1] for line in lines if line[:1] == ["format"]), None)
    elements = [i for i, line in enumerate(lines) if line[:1] == ["element"]]
    if not end or form is None or not elements or lines[elements[0]][1] != "vertex":
        raise ValueError("its header is not that of a .ply with the vertices first")
    n, stop = int(lines[elements[0]][2]), elements[1] if len(elements) > 1 else len(lines)
    order = "<" if "little" in form else ">"
    fields = [(line[-1], order + PLY_TYPES[line[1]]) for line in lines[elements[0] + 1 : stop] if line[0] == "property"]
    body = body[body.index(b"\n") + 1 :]
    if form == "ascii":
        rows = [line.split()[: len(fields)] for line in body.decode("ascii").splitlines()[:n]]
        if len(rows) < n:
            raise ValueError(f"{len(rows)} of {n} vertices")
        vertex = {name: column for (name, _), column in zip(fields, np.array(rows, dtype=np.float64).T)}
    else:
        vertex = np.frombuffer(body, dtype=fields, count=n)
    return np.stack([vertex["x"], vertex["y"], vertex["z"]], 1)
