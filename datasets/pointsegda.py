"""PointSegDA: bodies from FAUST (seg_F), MIT (seg_M), Adobe (seg_A) and SCAPE (seg_S), a label for each point.

PointSegDA/{faust,mit,adobe,scape}/{train,val,test}/*.npy, each [P, 4]: x, y, z, label 1..8; see __init__.py.
"""

import warnings
from pathlib import Path

import numpy as np

from datasets import files, shapes
from engine.base import UserError, seed_of

NAME = "PointSegDA"
CLASSES = ("foot", "leg", "thigh", "torso", "upper arm", "forearm", "hand", "head")
DOMAINS = {"seg_F": "faust", "seg_M": "mit", "seg_A": "adobe", "seg_S": "scape"}
PREFIX = "seg_"
SPLITS = ("train", "val", "test")
PER_POINT = True
POINTS = 2048
FRAMED = False
SCANS = set()  # whole bodies, none seen from one side only
REMEDY = "get PointSegDA (github.com/IdanAchituve/DefRec_and_PCM has its address in PointSegDA/data/)"


def classes(root):
    return CLASSES


def load(root, key, split, labels):
    """Points (n, P, 3) float32 as in the files, labels (n, P) int64, 0..7, if asked for; UserError names a bad file."""
    if str(root) == "shapes":
        points, y = shapes.make(key, split)
        return points, y if labels else None
    paths = _files(root, key, split)

    def body(path):
        cloud = files.read_npy(path)
        files.check_cloud(cloud, path)
        if cloud.ndim != 2 or cloud.shape[1] != 4:
            raise UserError(f"{path}: has shape {cloud.shape}, not [P, 4] (x, y, z, label); replace it")
        if labels and not np.isin(cloud[:, 3], 1 + np.arange(len(CLASSES))).all():
            raise UserError(f"{path}: labels (column 3) must be whole numbers in 1..{len(CLASSES)}; replace it")
        return cloud

    clouds = files.each(paths, body, f"reading {DOMAINS[key]}/{split}")
    sizes = set(map(len, clouds))
    if len(sizes) > 1:  # as the clouds of PointDA-10 are
        P = min(max(sizes), POINTS)
        odd = sum(len(cloud) != P for cloud in clouds)
        warnings.warn(f"{DOMAINS[key]} {split}: {odd} of {len(clouds)} bodies are resampled to {P} points")
        clouds = [files.resample(cloud, P, seed_of("resample", i)) for i, cloud in enumerate(clouds)]
    array = np.stack(clouds)
    return array[..., :3].astype(np.float32), array[..., 3].astype(np.int64) - 1 if labels else None


def size(root, key, split):
    """How many bodies a split has, without reading them."""
    return shapes.size(key, split) if str(root) == "shapes" else len(_files(root, key, split))


def check(root, key, counts):
    """Nothing: there are no published counts to compare with."""


def official(key, counts):
    """Never: there are no published counts by which to know the set."""
    return False


def _files(root, key, split):
    folder = files.folder(root, Path(NAME, DOMAINS[key], split), REMEDY)
    paths = sorted(folder.glob("[!.]*.npy"))
    if not paths:
        raise UserError(f"{folder}: no .npy file; {REMEDY} again")
    return paths
