"""The cache of the files: quick, never stale, replaced when damaged, and not needed."""

import io
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from fixtures import make_pointda

from data import load_domain
from datasets import files, pointda
from engine.base import UserError

CHAIR = "PointDA_data/modelnet/chair/train/chair_0.npy"
SCANS = "PointDA_data/scannet/train_0.h5"


def keeping_time(path, change):
    """Change the file and set its time back: if its size stays too, the cache cannot see it."""
    before = path.stat()
    change(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_second_load_opens_no_npy(root):
    """One cache file a split stands in for files of unchanged size and time; a touched file is read again."""
    first = load_domain(root, "M")
    assert len(list(files.CACHE.iterdir())) == 2
    keeping_time(root / CHAIR, lambda path: path.write_bytes(bytes(path.stat().st_size)))
    again = load_domain(root, "M")
    assert torch.equal(first.train, again.train) and torch.equal(first.train_labels, again.train_labels)
    os.utime(root / CHAIR)
    with pytest.raises(UserError, match=CHAIR):
        load_domain(root, "M")


def test_a_second_load_opens_no_scan(root):
    """The same for .h5, whose labels are read each time."""
    first = load_domain(root, "SC")

    def blank(path):
        with h5py.File(path, "r+") as file:
            file["data"][...] = 0
            file["label"][...] = 9 - file["label"][...]

    keeping_time(root / SCANS, blank)
    again = load_domain(root, "SC")
    assert torch.equal(again.train, first.train) and torch.equal(again.train_labels, 9 - first.train_labels)


@pytest.mark.parametrize("change", ["size", "time", "one more", "one less", "renamed"])
def test_a_changed_folder_is_read_again(root, change):
    """Size, time and names are part of the key, and the old file is replaced, not left behind."""
    np.save((root / CHAIR).with_name("chair_1.npy"), np.load(root / CHAIR)[::-1] ** 2)
    before = load_domain(root, "M")
    path, other = root / CHAIR, np.load(root / CHAIR)[::-1] * np.float32([1, 2, 3])
    if change == "time":  # as large as before and changed a nanosecond later
        stat = path.stat()
        np.save(path, other)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    elif change == "size":
        keeping_time(path, lambda path: np.save(path, np.vstack([other, other[:1]])))
    elif change == "one more":
        np.save(path.with_name("new.npy"), other)
    elif change == "one less":
        path.unlink()
    else:
        path.rename(path.with_name("z.npy"))
    after = load_domain(root, "M")
    assert after.train.shape != before.train.shape or not torch.equal(before.train, after.train)
    assert torch.equal(before.test, after.test) and len(list(files.CACHE.iterdir())) == 2


@pytest.mark.parametrize("module", [files, pointda])
def test_code_that_reads_otherwise_reads_again(root, tmp_path, monkeypatch, module):
    """The key holds the code that decides what is read: a changed frame or check is no old cloud."""
    load_domain(root, "M")
    kept = {path: path.read_bytes() for path in files.CACHE.iterdir()}
    changed = tmp_path / "changed.py"
    changed.write_text(Path(module.__file__).read_text() + "# changed\n")
    monkeypatch.setattr(module, "__file__", str(changed))
    load_domain(root, "M")
    now = {path: path.read_bytes() for path in files.CACHE.iterdir()}
    assert now.keys() == kept.keys() and all(now[path] != kept[path] for path in kept)


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
    "text": lambda path: path.write_bytes(b"no" * 200),
    "another array": lambda path: path.write_bytes(bytes_of(np.save, np.zeros(3))),
    "another zip": lambda path: path.write_bytes(bytes_of(np.savez, np.zeros(3))),
    "half a zip": lambda path: path.write_bytes(b"PK\x03\x04 no zip"),
}


@pytest.mark.parametrize("damage", CORRUPT.values(), ids=CORRUPT)
def test_a_damaged_cache_is_made_anew(whole, damage):
    """Whatever happened to the cache files, the clouds are right, and the files are whole again."""
    first = load_domain(whole, "S")
    kept = {path: path.read_bytes() for path in files.CACHE.iterdir()}
    for path in kept:
        damage(path)
    assert torch.equal(load_domain(whole, "S").train, first.train)
    assert {path: path.read_bytes() for path in files.CACHE.iterdir()} == kept


def test_without_a_place_for_the_cache_loading_works(whole, tmp_path, monkeypatch):
    """A read-only checkout or a full disk costs the time of reading again, no more."""
    first = load_domain(whole, "M")
    monkeypatch.setattr(files, "CACHE", whole / CHAIR)  # a file: no folder can be made there
    assert torch.equal(load_domain(whole, "M").train, first.train)

    def full(path, content):
        raise UserError("no space left")

    monkeypatch.setattr(files, "CACHE", tmp_path / "full")
    monkeypatch.setattr(files, "write_atomically", full)
    assert torch.equal(load_domain(whole, "M").train, first.train) and not list(files.CACHE.iterdir())


def test_the_data_folder_stays_untouched(whole):
    """It may be shared and read-only."""
    before = sorted(whole.rglob("*"))
    for key in pointda.DOMAINS:
        load_domain(whole, key)
    assert sorted(whole.rglob("*")) == before and len(list(files.CACHE.iterdir())) == 6


def test_a_linked_set_shares_the_cache(whole, tmp_path):
    """The set behind a symbolic link is the same set."""
    first = load_domain(whole, "M")
    (tmp_path / "link").symlink_to(whole)
    assert torch.equal(load_domain(tmp_path / "link", "M").train, first.train)
    assert len(list(files.CACHE.iterdir())) == 2


def test_two_sets_do_not_share_a_cache(tmp_path, whole):
    """Equal names and sizes in another folder are another set."""
    make_pointda(tmp_path, per_class=1, domains=("modelnet",), seed=1)
    a, b = load_domain(whole, "M"), load_domain(tmp_path, "M")
    assert len(list(files.CACHE.iterdir())) == 4 and not torch.equal(a.train, b.train)
