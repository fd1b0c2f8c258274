"""Tiny data sets in the official layouts, the same at every call, and what a refusal must look like.

make_pointda(tmp_path)                    # tmp_path/PointDA_data: 2 clouds of 64 points a class, domain and split
make_pointsegda(tmp_path)                 # tmp_path/PointSegDA: 3 clouds of 64 points a domain and split
"""

import shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest

from datasets import pointda, pointsegda
from datasets.pointda import CLASSES
from engine.base import UserError
from engine.base import call as command  # noqa: F401 - under the name that the tests know


def refusal(call):
    """The message of the UserError that the call ends in: one line with a remedy behind a semicolon."""
    with pytest.raises(UserError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and "; " in text
    return text


def blobs(rng, labels, n_points, columns=3):
    """One Gaussian cloud a label, off centre and of a height that tells the class, (m, n, columns) float32."""
    clouds = rng.normal(size=(len(labels), n_points, columns))
    clouds[..., 2] *= 1 + np.asarray(labels)[:, None]
    return (clouds + 0.5).astype(np.float32)


def write_h5(path, points, labels):
    """One file of the scans: data [m, n, >= 3] and label as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["data"], file["label"] = points, labels


def make_pointda(root, per_class=2, n_points=64, *, domains=tuple(pointda.DOMAINS.values()), seed=0):
    """root/PointDA_data/ with `per_class` clouds of each class in train and in test; returns root."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(CLASSES)), per_class)
    for domain in domains:
        for split in ("train", "test"):
            if domain == "scannet":
                order = rng.permutation(labels)  # scans lie mixed, unlike the folders of the models
                write_h5(root / "PointDA_data" / domain / f"{split}_0.h5", blobs(rng, order, n_points, 6), order)
                continue
            for i, (c, cloud) in enumerate(zip(labels, blobs(rng, labels, n_points))):
                folder = root / "PointDA_data" / domain / CLASSES[c] / split
                folder.mkdir(parents=True, exist_ok=True)
                np.save(folder / f"{CLASSES[c]}_{i % per_class}.npy", cloud)
    return root


def linked_pointda(root, whole):
    """A set to damage: modelnet/chair and scannet are copies, all else links to `whole`, quickly made and removed."""
    own, old = root / "PointDA_data", whole / "PointDA_data"
    (own / "modelnet").mkdir(parents=True)
    for name in CLASSES:
        (own / "modelnet" / name).symlink_to(old / "modelnet" / name)
    (own / "shapenet").symlink_to(old / "shapenet")
    (own / "modelnet/chair").unlink()
    for part in ("modelnet/chair", "scannet"):
        shutil.copytree(old / part, own / part)
    return root


def make_pointsegda(root, per_split=3, n_points=64, *, domains=tuple(pointsegda.DOMAINS.values()), seed=0):
    """root/PointSegDA/ with `per_split` bodies [n, 4] in train, val and test of each domain; returns root."""
    rng = np.random.default_rng(seed)
    for domain in domains:
        for split in ("train", "val", "test"):
            folder = root / "PointSegDA" / domain / split
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(per_split):
                part = np.arange(n_points) * len(pointsegda.CLASSES) // n_points  # 0..7 in bands up the body
                points = rng.normal(scale=0.2, size=(n_points, 3)) + part[:, None] * [0, 0, 0.2]
                np.save(folder / f"{i}.npy", np.column_stack([points, part + 1]).astype(np.float32))
    return root


def some(domain, n, labels=True):
    """The first n clouds of each split of a domain, with or without labels, as load_domain would give it."""
    cut = {"train": domain.train[:n], "test": domain.test[:n]}
    cut |= {name: getattr(domain, name)[:n] if labels else None for name in ("train_labels", "test_labels")}
    return replace(domain, **cut)
