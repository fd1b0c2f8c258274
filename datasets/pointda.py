"""PointDA-10: ten classes of furniture from ModelNet (M), ShapeNet (S) and, scanned, ScanNet (SC), labels of clouds.

PointDA_data/{modelnet,shapenet}/<class>/{train,test}/*.npy, PointDA_data/scannet/{train,test}_*.h5; see __init__.py.
"""

from pathlib import Path

import numpy as np
import torch

from datasets import files, shapes
from engine.base import UserError

NAME = "PointDA-10"
CLASSES = ("bathtub", "bed", "bookshelf", "cabinet", "chair", "lamp", "monitor", "plant", "sofa", "table")
DOMAINS = {"M": "modelnet", "S": "shapenet", "SC": "scannet"}
PREFIX = ""
SPLITS = ("train", "test")
PER_POINT = False
POINTS = 1024
SCANS = {"SC"}
FRAMED = True
FOLDER = "PointDA_data"

OFFICIAL = {  # clouds of each class, train and test
    "M": ((106, 515, 572, 200, 889, 124, 465, 240, 680, 392), (50, 100, 100, 86, 100, 20, 100, 100, 100, 100)),
    "S": ((599, 167, 310, 1076, 4612, 1620, 762, 158, 2198, 5876), (85, 23, 50, 126, 662, 232, 112, 30, 330, 842)),
    "SC": ((98, 329, 464, 650, 2578, 161, 210, 88, 495, 1037), (26, 85, 146, 149, 801, 41, 61, 25, 134, 301)),
}


def classes(root):
    return CLASSES


def load(root, key, split, labels):
    """Points (n, P, 3) float32, z up, each cloud in the unit sphere; labels (n,) int64 if asked for.

    ModelNet and ShapeNet name their classes by folder, so their clouds come class by class; the frame of ShapeNet's
    plants depends on that folder, as the data set itself has it. UserError names a bad file.
    """
    if str(root) == "shapes":
        points, y = shapes.make(key, split)
    else:
        points, y = _read_scans(root, key, split, labels) if key in SCANS else _read_models(root, key, split)
    return files.normalise(torch.from_numpy(points)).numpy(), y if labels else None


def size(root, key, split):
    """How many clouds a split has, without reading them."""
    if str(root) == "shapes":
        return shapes.size(key, split)
    if key not in SCANS:
        return len(_model_files(root, key, split))
    return sum(
        files.read_h5(path, lambda file: len(files.own_array(file, "data", path)))
        for path in _scan_files(root, key, split)
    )


def check(root, key, counts):
    """The full set has known counts, a set of that size with others is damaged; a class may be absent from scans."""
    name = DOMAINS[key]
    for split, each in zip(SPLITS, OFFICIAL[key]):
        got = counts[split]
        if str(root) != "shapes" and got["total"] == sum(each) and got["per_class"] != list(each):
            raise UserError(
                f"{root}: {name} {split} has {got['per_class']} clouds a class, not {NAME}'s {list(each)}; "
                "fetch it again with `make data`"
            )
    files.warn_of_absent(name, CLASSES, counts)


def official(key, counts):
    """Whether every count is the published one; classes that were not opened count by their number."""
    return all(
        counts[split]["total"] == sum(each) and counts[split].get("per_class", list(each)) == list(each)
        for split, each in zip(SPLITS, OFFICIAL[key])
    )


# ---------------------------------------------------------------- models: <class>/<split>/*.npy
def _folder(root, key):
    return files.folder(root, Path(FOLDER, DOMAINS[key]), f"get {NAME} with `make data`")


def _model_files(root, key, split):
    """[(path, class), ...] class by class."""
    folder, found = _folder(root, key), []
    for c, name in enumerate(CLASSES):
        paths = sorted((folder / name / split).glob("[!.]*.npy"))  # a Mac leaves ._x.npy beside x.npy
        if not paths:
            raise UserError(f"{folder / name / split}: no .npy file; all ten classes need some, see `make data`")
        found += [(path, c) for path in paths]
    return found


def _read_models(root, key, split):
    """Points (n, P, 3), labels (n,): file by file once, then from the cache."""
    found = _model_files(root, key, split)

    def read():
        one = lambda path: files.check_cloud(files.read_npy(path), path)
        clouds = files.each([path for path, _ in found], one, f"reading {DOMAINS[key]}/{split}")
        as_they_are = [key == "M" or CLASSES[c] == "plant" for _, c in found]
        return files.stacked([x if upright else files.turn_up(x) for x, upright in zip(clouds, as_they_are)])

    points = files.cached([path for path, _ in found], __file__, read)
    return points, np.array([c for _, c in found], dtype=np.int64)


# ---------------------------------------------------------------- scans: <split>_*.h5
def _scan_files(root, key, split):
    folder = _folder(root, key)
    paths = sorted(folder.glob(f"{split}_*.h5"))
    if not paths:
        raise UserError(f"{folder}: no {split}_*.h5 file; fetch the set again with `make data`")
    return paths


def _read_scans(root, key, split, labels):
    """Points (n, P, 3), and labels (n,) only if asked for."""
    paths = _scan_files(root, key, split)
    y = [files.read_h5(path, lambda file, path=path: _scan_labels(file, path, labels)) for path in paths]

    def read():
        arrays = [files.read_h5(path, lambda file: file["data"][...]) for path in paths]
        named = {f"{path}, cloud {i}": x for path, array in zip(paths, arrays) for i, x in enumerate(array)}
        one = lambda name: files.turn_up(files.check_cloud(named[name], name))
        return files.stacked(files.each(named, one, f"reading {DOMAINS[key]}/{split}"))

    return files.cached(paths, __file__, read), np.concatenate(y) if labels else None


def _scan_labels(file, path, values):
    """Check that labels fit the clouds; read and check their values only if asked to."""
    data, label = (files.own_array(file, name, path) for name in ("data", "label"))
    for name, array in (("data", data), ("label", label)):
        if array is None:
            raise UserError(f"{path}: has no dataset `{name}`; fetch it again")
    if data.ndim != 3 or not len(data) or label.shape not in ((len(data),), (len(data), 1)):
        raise UserError(
            f"{path}: data {data.shape} and label {label.shape} do not fit, "
            "[m, n, 3 or more] and [m] with m >= 1 are needed; fetch it again"
        )
    if not values:
        return None
    y = label[...].reshape(-1)
    if y.dtype.kind not in "fiu" or not np.isin(y, np.arange(len(CLASSES))).all():
        raise UserError(f"{path}: labels must be whole numbers in 0..{len(CLASSES) - 1}; fetch it again")
    return y.astype(np.int64)
