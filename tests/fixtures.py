"""Tiny data sets in the official layouts."""

import h5py
import numpy as np

from data import CLASSES


def make_pointda(root, per_class=2, n_points=64):
    """PointDA_data/ with `per_class` clouds a class and split in all three domains."""
    rng = np.random.default_rng(0)
    for domain in ("modelnet", "shapenet"):
        for c, name in enumerate(CLASSES):
            for split in ("train", "test"):
                folder = root / "PointDA_data" / domain / name / split
                folder.mkdir(parents=True, exist_ok=True)
                for i in range(per_class):
                    np.save(folder / f"{name}_{i}.npy", rng.normal(size=(n_points, 3)).astype(np.float32) * (1 + c))
    (root / "PointDA_data" / "scannet").mkdir(exist_ok=True)
    for split in ("train", "test"):
        with h5py.File(root / "PointDA_data" / "scannet" / f"{split}_0.h5", "w") as file:
            file["data"] = rng.normal(size=(10 * per_class, n_points, 6)).astype(np.float32)
            file["label"] = np.arange(10 * per_class) % 10
    return root
