"""Point clouds in files: reading, checking, one size and frame for all of them, and the cache.

Whatever is wrong with a file ends in a UserError that names it. The cache holds the clouds of one split in one file; it
is never needed and never stale: the sizes and times of the files and the code that reads them are part of its key.
"""

import hashlib
import io
import os
import warnings
from pathlib import Path

import h5py
import numpy as np
import torch
from tqdm import tqdm

from datasets import clouds, formats, text
from datasets.clouds import MOST_POINTS, MOST_RATIO
from datasets.formats import TOO_NEAR
from engine.base import ROOT, UserError, one_line, seed_of, visible, write_atomically
from engine.checked import MOST_BYTES, npy_header, size_of

CACHE = ROOT / ".cache"
READERS = (clouds, formats, text)
MOST_NAMED = 50  # bad files in one message


# ---------------------------------------------------------------- frames and sizes
def normalise(points):
    """Subtract the mean and divide by the largest norm, (..., N, 3): the unit sphere."""
    points = points - points.mean(-2, keepdim=True)
    return points / points.norm(dim=-1, keepdim=True).amax(-2, keepdim=True).clamp_min(1e-12)


def turn_up(points, up="y"):
    """y up -> z up: (x, y, z) -> (x, -z, y); x up -> z up: (x, y, z) -> (y, z, x); z: as they are, (..., 3)."""
    x, y, z = np.moveaxis(np.asarray(points), -1, 0)
    return np.stack({"y": (x, -z, y), "x": (y, z, x), "z": (x, y, z)}[up], -1)


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
def folder(root, part, remedy, built_in=", or try the built-in shapes with DATA=shapes (--data shapes)"):
    """The folder root/part; UserError with the remedy otherwise, or with the place one level off where it lies."""
    path = Path(root) / part
    if path.is_dir():
        return path
    for near in (Path(root).resolve().parent, *sorted(Path(root).glob("*/"))):
        if (near / part).is_dir():
            raise UserError(f"{path}: no such folder; {near / part} is one, so give --data {near} (DATA={near})")
    raise UserError(f"{path}: no such folder; {remedy}{built_in}")


def each(paths, read, label):
    """[read(path), ...] with a bar; all that cannot be read are named together, the first three with the reason."""
    found, bad = [], {}  # path -> reason
    for path in tqdm(paths, label, leave=False, dynamic_ncols=True):
        try:
            found.append(read(path))
        except UserError as error:
            bad[path] = str(error)
    if len(bad) == 1:
        raise UserError(*bad.values())
    if bad:
        others = ", ".join(map(str, list(bad)[3:MOST_NAMED]))
        others += f" and {len(bad) - MOST_NAMED} more" if len(bad) > MOST_NAMED else ""
        reasons = " | ".join(list(bad.values())[:3]) + (f" | and {others}" if others else "")
        raise UserError(f"{len(bad)} of {len(paths)} files cannot be read: {reasons}")
    return found


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
    if np.ptp(points, 0).max() < TOO_NEAR:
        raise UserError(f"{where}: all its points lie within 1e-9 of each other; save it in a larger unit")
    return points


def read_npy(path):
    """The array of a .npy file; UserError names one that is not whole."""
    try:
        with open(path, "rb") as file:  # not np.load, which would also open an .npz
            shape, dtype = npy_header(file)
            if file.tell() + size_of(shape, dtype) > path.stat().st_size:
                raise ValueError("its end is missing")
            if size_of(shape, dtype) > MOST_BYTES:
                raise ValueError(f"over {MOST_BYTES} bytes")
            file.seek(0)
            return np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # a damaged header fails in a dozen ways
        raise UserError(f"{path}: not a whole .npy array of numbers ({one_line(error)}); fetch it again") from None


def read_h5(path, read, remedy="fetch it again"):
    """read(file) of an opened .h5 file; UserError names one that is not whole."""
    try:
        with h5py.File(path, "r", locking=False) as file:  # another job may have it open
            return read(file)
    except UserError:
        raise
    except Exception as error:  # a damaged file fails in a dozen ways
        raise UserError(f"{path}: not a whole HDF5 file ({one_line(error)}); {remedy}") from None


def own_array(file, name, path, remedy="fetch it again"):
    """The data set `name` of an opened .h5, if it lies in that very file and is no bomb, or None; else UserError."""
    array = file.get(name) if isinstance(file.get(name, getlink=True), h5py.HardLink) else None
    if not isinstance(array, h5py.Dataset) or array.shape is None:
        return None
    if array.is_virtual or array.external or array.nbytes > MOST_RATIO * array.id.get_storage_size():
        raise UserError(f"{path}: `{name}` {array.shape} does not lie in it; {remedy}")
    if max(array.nbytes, size_of(array.chunks or (), array.dtype)) > MOST_BYTES:
        raise UserError(
            f"{path}: `{name}` {array.shape} unpacks to over {MOST_BYTES} bytes; split it into several files"
        )
    return array


def cached(paths, code, read):
    """read() as float32 (n, P, 3), kept in one file for these paths as they are now, where one can be written.

    code: path of the module that `read` belongs to, which decides with this one and READERS what is read.
    """
    try:
        stats = [(p.name, p.parent.parent.name, p.stat().st_size, p.stat().st_mtime_ns) for p in paths]
    except OSError as error:  # a link that leads nowhere
        raise UserError(f"{error.filename}: {error.strerror}; fetch it again") from None
    # the name stands for the place, the key for its files and the code: a changed folder replaces its own file
    place = f"{paths[0].resolve().parent} {paths[0].name if paths[0].suffix == '.h5' else ''}"
    source = b"".join(Path(c).read_bytes() for c in (__file__, code, *(module.__file__ for module in READERS)))
    key = hashlib.sha256(repr((stats, MOST_POINTS)).encode() + source).hexdigest()
    path = CACHE / f"{hashlib.sha256(os.fsencode(place)).hexdigest()[:24]}.npz"
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


def warn_of_absent(name, classes, counts):
    """A warning that names the classes of which a domain's split has no cloud."""
    none = {split: [c for c, n in zip(classes, each["per_class"]) if n == 0] for split, each in counts.items()}
    absent = [f"{split} has no {', '.join(missing)}" for split, missing in none.items() if missing]
    if absent:
        warnings.warn(f"{name} {'; '.join(absent)}; mean class accuracy averages the classes present")


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
    if not isinstance(root, (str, Path)):
        return "own clouds: " + " -> ".join(visible(Path(folder).resolve().name) for folder in root)
    if official:
        return name
    own = Path(root) / name
    note = (own if own.is_dir() else Path(root)) / "NAME"
    if not note.is_file():
        return "custom: " + visible(Path(root).resolve().name)
    with open(note, errors="replace") as file:
        return "custom: " + visible(file.readline(200).strip())
