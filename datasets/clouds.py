"""One cloud of one's own from a file of any common format: `read_cloud(path)`.

What a file is decides its content, then its name. A cloud of more points than asked for is sampled while it is read, so
that memory is bounded by the sample and not by the file: .npy, .h5, text, and .ply and .pcd without faces. Nothing is
unpickled, no link is followed out of an .h5, and no file is opened because another one names it.
"""

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from datasets import formats
from datasets.formats import TOO_FAR, TOO_NEAR
from datasets.text import CHUNK, WIDE, NoCloud, read_text, xyz_columns
from engine.base import UserError, one_line, seed_of
from engine.checked import MOST_BYTES, UNPACKED, npy_header, size_of

FORMATS = (".npy", ".npz", ".h5", ".hdf5", ".ply", ".pcd", ".off", ".obj", ".stl")
FORMATS += (".xyz", ".txt", ".pts", ".csv", ".tsv", ".asc", ".xyzn", ".xyzrgb")  # rows of text
MOST_POINTS = 2048  # a domain keeps at most this many points of a cloud
MOST_NESTED = 100  # groups of an .h5
MOST_RATIO = 1100  # deflate packs no better than 1 : 1032
KEYS = ("points", "xyz", "pos", "position", "positions", "point_cloud", "pointcloud", "pc", "pcd", "pts")
KEYS += ("coords", "coord", "coordinates", "vertices", "verts", "data", "cloud", "arr_0")
PACKED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"(\xb5/\xfd": "unzstd", b"7z\xbc\xaf": "7z x"}
READ = f"read are {' '.join(FORMATS)}"


@dataclass
class Cloud:
    """Points (n, 3) float64 in the file's own frame, what was decided about them, and how many were dropped.

    float64, since map coordinates outgrow the seven digits of float32: normalise first, then convert. A note is a line
    for the user, "kind: what it means for this file"; those of many files are told together by their kind.
    """

    points: np.ndarray
    notes: list
    dropped: int  # NaN, Inf or too far


def read_cloud(path, n=MOST_POINTS):
    """The Cloud in a file: all points, n of them where there are more, or n of the surface where there are faces.

    The same content and n give the same points. UserError is one line with the file, the line where it is text, what is
    wrong, what to do and what can be read.
    """
    notes = []
    try:
        file = Path(path).expanduser()
        return Cloud(*_gather(_reader(file)(file, n, notes), n, notes))
    except NoCloud as error:
        where = f"{path}, line {error.line}" if error.line else path
        remedy = error.remedy or ("mend that line" if error.line else "give another file")
        text = f"{where}: {error}; {remedy} ({READ})"
    except PermissionError:
        text = f"{path}: no permission to read it; change that with chmod u+r"
    except Exception as error:  # a damaged file fails in a dozen ways
        text = f"{path}: damaged or no cloud ({one_line(error)[:200]}); give another file ({READ})"
    raise UserError(one_line(text))


def cloud_of(array, where, n=MOST_POINTS):
    """The Cloud in an array, e.g. of a set's .h5: (N, 3 or more), turned, with axes of length 1; or UserError."""
    notes = []
    try:
        return Cloud(*_gather(_rows([array], notes), n, notes))
    except NoCloud as error:
        raise UserError(one_line(f"{where}: {error}; {error.remedy or 'replace it'}")) from None


def _gather(chunks, n, notes):
    """What a Cloud is made of, from chunks of points (m, 3): n of all, drawn evenly, in their order; or NoCloud."""
    rng, kept, keys, total, lost = np.random.default_rng(seed_of("points", n)), np.empty((0, 3)), np.empty(0), 0, 0
    for points in chunks:
        with np.errstate(invalid="ignore"):
            sound = (np.abs(points) < TOO_FAR).all(1)
        total, lost = total + len(points), lost + int((~sound).sum())
        kept, keys = np.concatenate([kept, points[sound]]), np.concatenate([keys, rng.random(sound.sum())])
        if len(keys) > n:  # the n smallest keys of all that came are an even draw of it
            best = np.sort(np.argpartition(keys, n)[:n])
            kept, keys = kept[best], keys[best]
    if lost:
        notes.append(f"points that are NaN, Inf or beyond 1e15 are dropped: {lost} of {total}")
    if len(kept) < 2 or (kept == kept[0]).all():
        raise NoCloud(f"has no two different points: {total} in all, {lost} of them NaN, Inf or beyond 1e15")
    if np.ptp(kept, 0).max() < TOO_NEAR:
        raise NoCloud("all its points lie within 1e-9 of each other", remedy="save it in a larger unit")
    if total - lost > n:
        notes.append(f"points are drawn at random: {n} of {total - lost}")
    return kept, notes, lost


# ---------------------------------------------------------------- what a file is
def _reader(path):
    """The reader of a file, by its first bytes or else by its name; NoCloud if there is none."""
    if not path.is_file():
        raise NoCloud("is a folder" if path.is_dir() else "is no file" if path.exists() else "no such file")
    with open(path, "rb") as file:
        start = file.read(4096)
    if not start:
        raise NoCloud("is empty")
    for magic, command in PACKED.items():
        if start.startswith(magic):
            raise NoCloud("is compressed", remedy=f"unpack it: {command} {path}")
    bare = re.sub(rb"(?m)^[ \t]*#.*$", b"", start.removeprefix(b"\xef\xbb\xbf")).lstrip()
    for kind, reader in KINDS.items():
        if re.match(kind, start) or re.match(kind, bare):
            return reader
    if re.search(rb"(?m)^FIELDS\s", bare) and re.search(rb"(?m)^DATA\s", bare):
        return formats.pcd
    if re.search(rb"(?m)^[ \t]*v[ \t]+[-+.\d]", bare):
        return formats.obj
    return BY_NAME.get(path.suffix.lower(), lambda path, n, notes: read_text(path, notes))


def _npy(path, n, notes):
    with open(path, "rb") as file:
        shape, dtype = npy_header(file)
        end = file.tell() + size_of(shape, dtype)
    if dtype.hasobject:
        raise NoCloud("holds Python objects, not numbers")
    if end > path.stat().st_size:
        raise NoCloud(formats.CUT)
    # mapped anew for each chunk, or in the end the whole file would be in memory
    return _array_rows(lambda index: np.load(path, mmap_mode="r", allow_pickle=False)[index], shape, dtype, notes)


def _npz(path, n, notes):
    with zipfile.ZipFile(path) as whole:
        infos = {info.filename[:-4]: info for info in whole.infolist() if info.filename.endswith(".npy")}
        found = {}
        if any(info.compress_type not in UNPACKED for info in infos.values()):  # others unpack without a bound
            raise NoCloud("is packed in an unusual way", remedy="save it with np.savez")
        for name, info in infos.items():
            with whole.open(info) as file:
                found[name] = npy_header(file)
        arrays = []
        for name in _choose(found, notes):
            _not_too_much(*found[name], min(infos[name].compress_size, path.stat().st_size))
            with whole.open(infos[name]) as file:
                arrays.append(np.lib.format.read_array(file, allow_pickle=False))
    return _rows(arrays, notes)


def _h5(path, n, notes):
    with h5py.File(path, "r", locking=False) as file:  # another job may have it open
        found = {}

        def visit(name, each):  # what is reached without a link, which may lead out of the file
            if name.count("/") > MOST_NESTED:  # each is found from the top again
                raise NoCloud(f"has groups nested over {MOST_NESTED} deep")
            if isinstance(each, h5py.Dataset) and each.shape is not None:
                found[name] = each.shape, each.dtype

        file.visititems(visit)
        arrays = [file[name] for name in _choose(found, notes)]
        for each in arrays:
            if each.is_virtual or each.external:
                raise NoCloud(f"`{each.name}` lies in other files", remedy="copy it into this one")
            if sum(size > 1 for size in each.shape) > 2:
                raise NoCloud(f"holds clouds {each.shape}, not one", remedy="write each to a file of its own")
            stored = each.id.get_storage_size()
            _not_too_much(each.chunks or (), each.dtype, stored)
            if size_of(each.shape, each.dtype) > MOST_RATIO * stored:
                raise NoCloud(f"announces `{each.name}` {each.shape} and does not hold it")
        yield from _rows(arrays, notes)


def _not_too_much(shape, dtype, stored):
    """NoCloud if an array of this shape is more than can be stored in so many bytes, or than is sensible to unpack."""
    if size_of(shape, dtype) > min(MOST_BYTES, MOST_RATIO * stored):
        raise NoCloud(f"announces {size_of(shape, dtype)} bytes and holds {stored}", remedy="save it as .npy")


def _choose(found, notes):
    """Which of the arrays {name: (shape, dtype)} are the cloud: one, or those of x, of y and of z; or NoCloud."""
    numbers = [name for name, (shape, dtype) in found.items() if dtype.kind in "fiuV" and shape]
    last = [name.rpartition("/")[2].lower() for name in numbers]
    axes = xyz_columns(last)
    for key in KEYS:
        names = [name for name, each in zip(numbers, last) if each == key]
        if names:
            break
    else:
        shaped = [name for name in numbers if found[name][1].names or _layout(found[name][0])]
        names = [numbers[i] for i in axes] if axes else shaped
    if len(names) == 1 or axes and len(names) == 3:
        if len(numbers) > len(names):
            notes.append(f"one of several arrays is taken: {', '.join(names)} of {', '.join(numbers)}")
        return names
    known = ", ".join(f"`{name}` {found[name][0]}" for name in numbers) or "no array of numbers"
    raise NoCloud(f"holds {known}: none is known to be the points", remedy="name that array `points`")


# ---------------------------------------------------------------- arrays
def _layout(shape):
    """Which axis of an array without axes of length 1 is x, y, z: "last", "first" or, if that is not clear, None."""
    if len(shape) == 2:
        a, b = shape
        if a == 3 < b or 3 < a <= WIDE and b > 4 * WIDE:
            return "first"
        return "last" if 3 <= b <= WIDE and (b == 3 != a or a > b or a < 3) else None
    if len(shape) == 3:  # a scan of rows and columns
        a, b, c = shape
        if 3 <= c <= WIDE and min(a, b) > c:
            return "last"
        return "first" if a == 3 and min(b, c) > WIDE else None
    return None


def _rows(arrays, notes):
    """Rows of one array, or of three that are x, y and z, each (N,)."""
    if len(arrays) == 1:
        yield from _array_rows(arrays[0].__getitem__, arrays[0].shape, arrays[0].dtype, notes)
        return
    if any(array.ndim != 1 or array.shape != arrays[0].shape for array in arrays):
        raise NoCloud(f"x, y and z have the shapes {', '.join(str(array.shape) for array in arrays)}")
    for a in range(0, len(arrays[0]), CHUNK):
        yield np.stack([array[a : a + CHUNK].astype(np.float64) for array in arrays], 1)


def _array_rows(get, whole, dtype, notes):
    """x, y, z in chunks (m, 3) float64 of an array of this shape, of which get(index) is a part; NoCloud if unclear."""
    axes = [i for i, size in enumerate(whole) if size != 1]
    shape = tuple(whole[i] for i in axes)

    def part(*slices):
        index = [0] * len(whole)
        for axis, each in zip(axes, slices):
            index[axis] = each
        return np.asarray(get(tuple(index)))

    fields = xyz_columns(dtype.names or ())
    layout = "fields" if fields and shape else _layout(shape)
    if dtype.kind not in "fiu" and not fields:
        raise NoCloud(f"holds {dtype}, not numbers")
    if layout is None or len(shape) == 3 and dtype.itemsize == 1:
        what = "is a picture" if layout else "has no axis that is clearly x, y, z:"
        raise NoCloud(f"{what} {whole}", remedy="save it as (N, 3)")
    if layout != "fields" and len(shape) == 3:
        notes.append(f"taken as one scan of rows and columns, not as many clouds: {whole}")
    if layout == "first":
        notes.append(f"turned, x, y, z come first: {whole}")
    if layout != "fields" and shape[0 if layout == "first" else -1] > 3:
        notes.append(f"the first three columns are taken as x, y, z: {whole}")
    long = 1 if layout == "first" else 0
    beside = 1 if layout == "last" and len(shape) == 2 else int(np.prod(shape[long + 1 :]))
    for a in range(0, shape[long], max(1, CHUNK // beside)):
        some = slice(a, a + max(1, CHUNK // beside))
        if layout == "fields":
            records = part(some)
            yield np.stack([records[dtype.names[c]].astype(np.float64).ravel() for c in fields], 1)
        elif layout == "first":
            yield part(slice(3), some).astype(np.float64).reshape(3, -1).T
        else:
            index = (some, slice(3)) if len(shape) == 2 else (some, slice(None), slice(3))
            yield part(*index).astype(np.float64).reshape(-1, 3)


KINDS = {  # by the first bytes, with or without leading comments
    rb"\x93NUMPY": _npy,
    rb"PK(\x03\x04|\x05\x06)": _npz,
    rb"\x89HDF\r\n\x1a\n": _h5,
    rb"ply[ \t]*[\r\n]": formats.ply,
    rb"(ST)?C?N?OFF[\s\d]": formats.off,
    rb"solid[^\r\n]*\s+facet\s": formats.stl,
}
BY_NAME = {".npy": _npy, ".npz": _npz, ".h5": _h5, ".hdf5": _h5, ".ply": formats.ply, ".pcd": formats.pcd}
BY_NAME |= {".off": formats.off, ".obj": formats.obj, ".stl": formats.stl}
