"""datasets/: each file that is no cloud is refused in one line that names it, whatever is wrong with it."""

import h5py
import numpy as np
import pytest
from fixtures import blobs, make_pointda, make_pointsegda, refusal, write_h5

from data import load_domain
from datasets import files, pointsegda
from engine.base import UserError

CHAIR = "PointDA_data/modelnet/chair/train/chair_0.npy"
SCANS = "PointDA_data/scannet/train_0.h5"
BODY = "PointSegDA/faust/train/1.npy"
GOOD = blobs(np.random.default_rng(1), [4], 64)[0]


# ---------------------------------------------------------------- models
def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def save(array, **kw):
    return lambda path: np.save(path, array, **kw)


def spoilt(value):
    cloud = GOOD.copy()
    cloud[5, 1] = value
    return save(cloud)


def zipped(path):
    np.savez(path.with_suffix(".npz"), GOOD)
    path.with_suffix(".npz").replace(path)


def broken_header(path):
    path.write_bytes(path.read_bytes().replace(b"}", b" ", 1))


def huge_header(path):
    header = {"descr": "<f8", "fortran_order": False, "shape": (2**50, 3)}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)


def dangling(path):
    path.unlink()
    path.symlink_to("nowhere.npy")


BAD_NPY = {
    "cut short": (cut, "not a whole .npy"),
    "empty file": (lambda path: path.write_bytes(b""), "not a whole .npy"),
    "text": (lambda path: path.write_text("1 2 3\n4 5 6\n"), "not a whole .npy"),
    "broken header": (broken_header, "not a whole .npy"),
    "a terabyte announced": (huge_header, "not a whole .npy"),
    "an .npz": (zipped, "not a whole .npy"),
    "a link to nothing": (dangling, "No such file"),
    "pickled objects": (save(np.array([[1, 2, None]] * 4, dtype=object), allow_pickle=True), "not a whole .npy"),
    "strings": (save(GOOD.astype(str)), "not numbers"),
    "truth values": (save(GOOD > 0), "not numbers"),
    "complex": (save(GOOD * 1j), "not numbers"),
    "one column too few": (save(GOOD[:, :2]), "(64, 2)"),
    "one axis": (save(GOOD[:, 0]), "(64,)"),
    "three axes": (save(GOOD[None]), "(1, 64, 3)"),
    "no axis": (save(np.float32(1)), "()"),
    "no point": (save(GOOD[:0]), "two different points"),
    "one point": (save(GOOD[:1]), "two different points"),
    "equal points": (save(np.ones((64, 3))), "two different points"),
    "equal in xyz": (save(np.column_stack([np.ones((64, 3)), np.arange(64)])), "two different points"),
    "NaN": (spoilt(np.nan), "NaN, Inf"),
    "Inf": (spoilt(-np.inf), "NaN, Inf"),
    "too large for float32": (save(GOOD.astype(float) * 1e300), "beyond 1e15"),
    "norms too large": (save(GOOD * np.float32(1e25)), "beyond 1e15"),
}


@pytest.mark.parametrize("spoil, says", BAD_NPY.values(), ids=BAD_NPY)
def test_a_bad_npy_is_named(root, spoil, says):
    """One line with the file's name and what is wrong with it."""
    spoil(root / CHAIR)
    text = refusal(lambda: load_domain(root, "M"))
    assert str(root / CHAIR) in text and says in text


# ---------------------------------------------------------------- scans
def scans(points=None, labels=None):
    points = blobs(np.random.default_rng(2), range(10), 64, 6) if points is None else points
    return lambda path: write_h5(path, points, np.arange(10) if labels is None else np.asarray(labels))


def without(name):
    def spoil(path):
        with h5py.File(path, "r+") as file:
            del file[name]

    return spoil


def spoilt_scan(value):
    points = blobs(np.random.default_rng(2), range(10), 64, 6)
    points[3, 5, 2] = value
    return scans(points)


def folder_instead(path):
    path.unlink()
    path.mkdir()


BAD_H5 = {
    "no data": (without("data"), "no dataset `data`"),
    "no label": (without("label"), "no dataset `label`"),
    "fewer labels": (scans(labels=range(9)), "do not fit"),
    "labels of points": (scans(labels=np.zeros((10, 64))), "do not fit"),
    "one cloud alone": (scans(np.zeros((10, 3)), range(10)), "do not fit"),
    "no cloud": (scans(np.zeros((0, 64, 3)), []), "m >= 1"),
    "two columns": (scans(np.zeros((10, 64, 2))), "cloud 0: has shape (64, 2)"),
    "strings": (scans(np.full((10, 64, 3), b"1")), "not numbers"),
    "NaN": (spoilt_scan(np.nan), "cloud 3: holds NaN, Inf"),
    "Inf": (spoilt_scan(np.inf), "cloud 3: holds NaN, Inf"),
    "one point": (scans(np.ones((10, 1, 3))), "two different points"),
    "equal points": (scans(np.ones((10, 64, 3))), "two different points"),
    "cut short": (cut, "not a whole HDF5"),
    "no HDF5": (lambda path: path.write_bytes(bytes(range(256))), "not a whole HDF5"),
    "a folder": (folder_instead, "not a whole HDF5"),
}


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("spoil, says", BAD_H5.values(), ids=BAD_H5)
def test_a_bad_h5_is_named(root, spoil, says, labels):
    """Whether or not labels are opened: their number must fit in both cases."""
    spoil(root / SCANS)
    text = refusal(lambda: load_domain(root, "SC", labels=labels))
    assert str(root / SCANS) in text and says in text


@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_damaged_stretch_of_an_h5_never_ends_in_a_traceback(root):
    """Wherever 64 bytes are lost, the file loads with finite points or is refused by name."""
    whole, results = (root / SCANS).read_bytes(), []
    for at in np.linspace(0, len(whole) - 64, 60).astype(int):
        (root / SCANS).write_bytes(whole[:at] + b"\xff" * 64 + whole[at + 64 :])
        try:
            results.append(bool(load_domain(root, "SC").train.isfinite().all()))
        except UserError as error:
            assert str(root / SCANS) in str(error) and "\n" not in str(error)
            results.append("refused")
    assert "refused" in results and False not in results


@pytest.mark.parametrize("wrong", [10, -1, 2.5, np.nan, b"sofa", True], ids=str)
def test_h5_labels_are_whole_numbers_below_ten(root, wrong):
    """Refused when they are asked for, and never looked at when they are not."""
    scans(labels=[wrong] * 10)(root / SCANS)
    text = refusal(lambda: load_domain(root, "SC"))
    assert SCANS in text and "0..9" in text
    assert load_domain(root, "SC", labels=False).train.shape == (10, 64, 3)


# ---------------------------------------------------------------- folders
def remove_class(root):
    for path in (root / "PointDA_data/modelnet/chair/train").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    "key, spoil, says",
    [
        ("M", lambda root: (root / "PointDA_data").rename(root / "elsewhere"), "PointDA_data/modelnet"),
        ("M", lambda root: (root / "PointDA_data/modelnet/chair").rename(root / "chair"), "modelnet/chair/train"),
        ("M", lambda root: (root / "PointDA_data/modelnet/chair/test").rename(root / "test"), "modelnet/chair/test"),
        ("M", remove_class, "modelnet/chair/train"),
        ("SC", lambda root: (root / SCANS).unlink(), "train_*.h5"),
        ("SC", lambda root: (root / "PointDA_data/scannet").rename(root / "scannet"), "PointDA_data/scannet"),
    ],
    ids=["no set", "no class folder", "no test folder", "empty class", "no train file", "no scannet"],
)
def test_a_missing_folder_is_named_with_the_command_that_gets_it(root, key, spoil, says):
    """The path and `make data`."""
    spoil(root)
    text = refusal(lambda: load_domain(root, key))
    assert says in text and "make data" in text


# ---------------------------------------------------------------- bodies
@pytest.fixture
def bodies(tmp_path):
    return make_pointsegda(tmp_path / "set", per_split=3, domains=("faust",))


def with_label(value):
    def spoil(path):
        body = np.load(path)
        body[7, 3] = value
        np.save(path, body)

    return spoil


BAD_BODY = {
    "no label column": (lambda path: np.save(path, np.load(path)[:, :3]), "(64, 3)"),
    "one column more": (lambda path: np.save(path, np.load(path)[:, [0, 1, 2, 3, 3]]), "(64, 5)"),
    "label 0": (with_label(0), "1..8"),
    "label 9": (with_label(9), "1..8"),
    "label 1.5": (with_label(1.5), "1..8"),
    "label NaN": (with_label(np.nan), "1..8"),
    "NaN": (lambda path: np.save(path, np.load(path) * [1, np.nan, 1, 1]), "NaN, Inf"),
    "cut short": (cut, "not a whole .npy"),
    "an .npz": (zipped, "not a whole .npy"),
}


@pytest.mark.parametrize("spoil, says", BAD_BODY.values(), ids=BAD_BODY)
def test_a_bad_body_is_named(bodies, spoil, says):
    """Labels are looked at only when asked for; all else always."""
    spoil(bodies / BODY)
    text = refusal(lambda: load_domain(bodies, "seg_F"))
    assert str(bodies / BODY) in text and says in text
    if says == "1..8":
        assert load_domain(bodies, "seg_F", labels=False).train_labels is None
    else:
        assert refusal(lambda: load_domain(bodies, "seg_F", labels=False)) == text


def test_bodies_of_unequal_numbers_of_points(bodies):
    """Resampled to the largest, each point with its label, and said; the others stay as they are."""
    whole = load_domain(bodies, "seg_F")
    path = (bodies / BODY).with_name("2.npy")
    short = np.load(path)[:50]
    np.save(path, short)
    with pytest.warns(UserWarning, match="1 of 3 bodies are resampled to 64 points"):
        domain = load_domain(bodies, "seg_F")
    split = (bodies / BODY).parent.name
    points, y = getattr(domain, split), getattr(domain, f"{split}_labels")
    assert points.shape == (3, 64, 3) and (points[:2] == getattr(whole, split)[:2]).all()
    rows = {tuple(row) for row in short.tolist()}
    assert {(*x, label + 1.0) for x, label in zip(points[2].tolist(), y[2].tolist())} <= rows


@pytest.mark.parametrize("missing", ["val", ""])
def test_a_missing_body_folder_is_named(bodies, missing):
    """The folder and where PointSegDA is to be had; it is not what `make data` fetches."""
    folder = bodies / "PointSegDA/faust" / missing
    folder.rename(bodies / "away")
    text = refusal(lambda: load_domain(bodies, "seg_F"))
    assert str(folder) in text and pointsegda.REMEDY in text and "make data" not in text
    folder.mkdir()
    assert str(folder) in refusal(lambda: load_domain(bodies, "seg_F"))


# ---------------------------------------------------------------- all at once, and one level off
@pytest.mark.parametrize("domain", ["M", "SC", "seg_F"])
def test_all_bad_files_are_named_at_once(tmp_path, domain):
    """Not one a run: the first three with the reason, the others by name."""
    root = make_pointda(make_pointsegda(tmp_path / "set", per_split=5))
    folder = {
        "M": "PointDA_data/modelnet/chair/train",
        "SC": "PointDA_data/scannet",
        "seg_F": "PointSegDA/faust/train",
    }[domain]
    if domain == "SC":
        with h5py.File(root / folder / "train_0.h5", "a") as file:
            file["data"][2:7, 5, 1] = np.nan
        names = [f"train_0.h5, cloud {i}" for i in range(2, 7)]
    else:
        for i in range(5):
            cloud = np.load(root / folder / f"{i}.npy") if domain == "seg_F" else GOOD.copy()
            cloud[i, 0] = np.nan
            np.save(root / folder / f"{i}.npy", cloud)
        names = [f"{i}.npy" for i in range(5)]
    message = refusal(lambda: load_domain(root, domain, labels=False))
    assert message.startswith("5 of ") and message.count("holds NaN") == 3
    assert all(name in message for name in names)


def test_more_than_fifty_bad_files_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MOST_NAMED", 4)
    paths = [tmp_path / f"{i}.npy" for i in range(7)]
    message = refusal(lambda: files.each(paths, files.read_npy, "reading"))
    assert "3.npy and 3 more" in message and "4.npy" not in message and message.startswith("7 of 7")


@pytest.mark.parametrize("given", ["above", "below", "inside"])
def test_a_set_one_level_off_is_found(tmp_path, whole, given):
    """The folder above, the set's own folder, and one in it: each message says what to give."""
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / "PointDA_data").symlink_to(whole / "PointDA_data")
    (tmp_path / "a b" / "other").mkdir()
    root = {"above": tmp_path, "below": tmp_path / "a b" / "other", "inside": tmp_path / "a b" / "modelnet"}[given]
    root.mkdir(exist_ok=True)
    message = refusal(lambda: load_domain(root, "M"))
    assert f"give --data {tmp_path / 'a b'} (DATA={tmp_path / 'a b'})" in message
