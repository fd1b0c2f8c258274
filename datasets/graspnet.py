"""GraspNetPC-10 (Shen et al., CVPR 2022): ten objects of GraspNet, by two depth cameras and rendered, labels of clouds.

GraspNetPointClouds/{train,test}/Real/{kinect,realsense}/<0..9>/*.xyz and train/Synthetic/...; see __init__.py.
"""

import warnings
from pathlib import Path

import numpy as np
import torch

from datasets import clouds, files
from engine.base import UserError

NAME = "GraspNetPC-10"
CLASSES = ("box", "can", "banana", "drill", "scissors", "pear", "dish", "camel", "mouse", "shampoo")
# rendered clouds are one domain, whichever camera they were rendered for; none are for testing, so a fifth is held out
DOMAINS = {"grasp_Syn": "Synthetic", "grasp_Kin": "kinect", "grasp_RS": "realsense"}
PLACES = {"grasp_Syn": "Synthetic/*", "grasp_Kin": "Real/kinect", "grasp_RS": "Real/realsense"}
PREFIX = "grasp_"
SPLITS = ("train", "test")
PER_POINT = False
POINTS = 1024
SCANS = set()  # all are seen from one side, the rendered ones, too: nothing is left to crop
FRAMED = True  # the camera's, z away from it: no file says where up is
# training clouds of each class, test clouds in all, as printed in the logs of PCFEA (github.com/xiaoyao3302/PCFEA)
OFFICIAL = {
    "grasp_Syn": ((1597, 2048, 2043, 1637, 1636, 2047, 1462, 1439, 1603, 1632), 4285),
    "grasp_Kin": ((1024, 1280, 1273, 1024, 1015, 1272, 1019, 1024, 1018, 1024), 2560),
    "grasp_RS": ((968, 1280, 1280, 1024, 1020, 1279, 1020, 841, 971, 1015), 2560),
}
FOLDER = "GraspNetPointClouds"
REMEDY = f"get {NAME} (github.com/Jhonve/ImplicitPCDA has its address) and unpack it there as {FOLDER}/"


def classes(root):
    return CLASSES


def load(root, key, split, labels):
    """Points (n, P, 3) float32, each cloud in the unit sphere, labels (n,) int64 if asked for; UserError: a file."""
    found = _files(root, key, split)
    paths = [path for path, _ in found]

    def read():
        one = lambda path: files.check_cloud(clouds.read_cloud(path).points, path)
        return files.stacked(files.each(paths, one, f"reading {DOMAINS[key]}/{split}"))

    points = files.normalise(torch.from_numpy(files.cached(paths, __file__, read))).numpy()
    return points, np.array([c for _, c in found], dtype=np.int64) if labels else None


def size(root, key, split):
    """How many clouds a split has, without reading them."""
    return len(_files(root, key, split))


def check(root, key, counts):
    """The full training set has known counts, one of that size with others is damaged; absent classes are named."""
    each, got = OFFICIAL[key][0], counts["train"]
    if got["total"] == sum(each) and got["per_class"] != list(each):
        raise UserError(
            f"{root}: {DOMAINS[key]} train has {got['per_class']} clouds a class, not {list(each)}; {REMEDY}"
        )
    files.warn_of_absent(DOMAINS[key], CLASSES, counts)


def official(key, counts):
    """Whether every known count is the published one; classes that were not opened count by their number."""
    each, test = OFFICIAL[key]
    train = counts["train"]["total"] == sum(each) and counts["train"].get("per_class", list(each)) == list(each)
    return train and counts["test"]["total"] == test


def _files(root, key, split):
    """[(path, class), ...] camera by camera and class by class; of ten rendered clouds the last two are for testing."""
    if str(root) == "shapes":
        raise UserError(
            f"--data shapes: there are no built-in shapes for {NAME}; give --data DIR, which holds {FOLDER}/"
        )
    held_out = key == "grasp_Syn"
    folder, found = files.folder(root, Path(FOLDER, "train" if held_out else split), REMEDY, built_in=""), []
    for camera in sorted(folder.glob(PLACES[key])):
        for c in range(len(CLASSES)):
            found += [(path, c) for path in sorted((camera / str(c)).glob("[!.]*.xyz"))]
    if held_out and split == "test" and (folder.parent / "test/Synthetic").is_dir():
        warnings.warn(f"{folder.parent / 'test/Synthetic'} is not read: rendered clouds of train/ are held out instead")
    if not found:
        raise UserError(f"{folder / PLACES[key]}: no <0..9>/*.xyz in it; {REMEDY}")
    return [file for i, file in enumerate(found) if (i % 10 >= 8) == (split == "test")] if held_out else found
