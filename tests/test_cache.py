"""The cache of data.py: quick, never stale, never trusted when damaged, and not needed."""

import io
import os

import numpy as np
import pytest
import torch
from fixtures import make_pointda

import data

N = 64


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test reads or writes the repository's cache."""
    monkeypatch.setattr(data, "CACHE", tmp_path / "cache")


@pytest.fixture
def root(tmp_path):
    return make_pointda(tmp_path / "set", n_points=N)


def forbid_reading(monkeypatch):
    def read(path):
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr(data, "_read_npy", read)


def test_a_second_load_reads_no_cloud(root, monkeypatch):
    """The first load leaves one file for each split; the second gives the same tensors from it."""
    first = data.load_domain(root, "S")
    assert len(list(data.CACHE.iterdir())) == 2
    forbid_reading(monkeypatch)
    again = data.load_domain(root, "S")
    assert torch.equal(first.train, again.train) and torch.equal(first.test_labels, again.test_labels)


def test_the_data_folder_stays_untouched(root):
    """Nothing is written where the data are."""
    before = sorted(root.rglob("*"))
    data.load_domain(root, "M"), data.load_domain(root, "SC")
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize("change", ["content", "time", "one more", "one less", "renamed"])
def test_a_changed_folder_is_read_again(root, change):
    """Size, time and names are part of the key, and the old file is replaced, not left behind."""
    before = data.load_domain(root, "M").train
    folder = root / "PointDA_data/modelnet/chair/train"
    path = folder / "chair_0.npy"
    other = np.load(path)[::-1] * [1, 2, 3]
    if change == "time":  # as large as before and changed a nanosecond later
        stat = path.stat()
        np.save(path, other.astype(np.float32))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    elif change == "one less":
        path.unlink()
    elif change == "renamed":
        path.rename(folder / "z.npy")
    else:
        np.save(folder / "new.npy" if change == "one more" else path, np.vstack([other, other[:1]]))
    after = data.load_domain(root, "M").train
    assert after.shape != before.shape or not torch.equal(before, after)
    assert len(list(data.CACHE.iterdir())) == 2


def flip(path):
    blob = bytearray(path.read_bytes())
    blob[len(blob) // 2] ^= 1
    path.write_bytes(blob)


def bytes_of(save, *arrays):
    buffer = io.BytesIO()
    save(buffer, *arrays)
    return buffer.getvalue()


CORRUPT = {
    "flipped bit": flip,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_bytes(b"no"),
    "another array": lambda path: path.write_bytes(bytes_of(np.save, np.zeros(3))),
    "another zip": lambda path: path.write_bytes(bytes_of(np.savez, np.zeros(3))),
}


@pytest.mark.parametrize("damage", CORRUPT.values(), ids=CORRUPT)
def test_a_damaged_cache_is_rebuilt(root, damage, monkeypatch):
    """Whatever happened to the cache files, the clouds are right, and the next load is quick again."""
    before = data.load_domain(root, "M").train
    for path in data.CACHE.iterdir():
        damage(path)
    assert torch.equal(data.load_domain(root, "M").train, before)
    forbid_reading(monkeypatch)
    assert torch.equal(data.load_domain(root, "M").train, before)


def test_without_a_place_for_the_cache_loading_works(root, tmp_path, monkeypatch):
    """Where no cache can be written, files are read each time."""
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(data, "CACHE", tmp_path / "file" / "cache")
    assert torch.equal(data.load_domain(root, "M").train, data.load_domain(root, "M").train)
