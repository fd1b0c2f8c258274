"""Loading, checks, cache, streams and augmentation of data.py, on tiny files in the official layouts."""

import os
import shutil
import warnings

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import data
from common import UserError
from data import CLASSES, load_domain
from fixtures import blobs, make_pointda, make_pointsegda, write_h5

CHAIR = "PointDA_data/modelnet/chair/train/chair_0004.npy"  # with one cloud a class
SCANS = "PointDA_data/scannet/train_0.h5"
BODY = "PointSegDA/faust/train/1.npy"
Y_TO_Z = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]], np.float32)  # (x, y, z) -> (x, -z, y)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A set to read from."""
    return make_pointda(tmp_path_factory.mktemp("whole") / "set", per_class=1)


@pytest.fixture
def root(tmp_path, whole):
    """A set to damage: modelnet/chair and scannet are its own, all else are links, which are quickly made and removed."""
    own, old = tmp_path / "set" / "PointDA_data", whole / "PointDA_data"
    (own / "modelnet").mkdir(parents=True)
    for name in CLASSES:
        (own / "modelnet" / name).symlink_to(old / "modelnet" / name)
    (own / "modelnet/chair").unlink()
    for part in ("modelnet/chair", "scannet"):
        shutil.copytree(old / part, own / part)
    (own / "shapenet").symlink_to(old / "shapenet")
    return tmp_path / "set"


def refusal(call):
    """The message of the UserError that the call ends in: one line with a remedy behind a semicolon."""
    with pytest.raises(UserError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and "; " in text
    return text


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def clouds(B=4, N=200, seed=0):
    return data.normalise(torch.randn(B, N, 3, generator=gen(seed)))


def unit(points):
    """Mean 0 and largest norm 1, by numpy in double precision."""
    points = np.asarray(points, np.float64)
    points = points - points.mean(0)
    return points / np.linalg.norm(points, axis=1).max()


# ---------------------------------------------------------------- bad files
GOOD = blobs(np.random.default_rng(1), [4], 64)[0]


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


def dangling(path):
    path.unlink()
    path.symlink_to("nowhere.npy")


BAD_NPY = {
    "cut short": (cut, "not a whole .npy"),
    "empty file": (lambda path: path.write_bytes(b""), "not a whole .npy"),
    "text": (lambda path: path.write_text("1 2 3\n4 5 6\n"), "not a whole .npy"),
    "broken header": (broken_header, "not a whole .npy"),
    "an .npz": (zipped, "not a whole .npy"),
    "a link to nothing": (dangling, ""),
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
    "NaN": (spoilt(np.nan), "NaN or Inf"),
    "Inf": (spoilt(-np.inf), "NaN or Inf"),
}


@pytest.mark.parametrize("spoil, says", BAD_NPY.values(), ids=BAD_NPY)
def test_a_bad_npy_is_named(root, spoil, says):
    """One line with the file's name and what is wrong with it."""
    spoil(root / CHAIR)
    text = refusal(lambda: load_domain(root, "M"))
    assert str(root / CHAIR) in text and says in text


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
    "NaN": (spoilt_scan(np.nan), "cloud 3: holds NaN or Inf"),
    "Inf": (spoilt_scan(np.inf), "cloud 3: holds NaN or Inf"),
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


@pytest.mark.parametrize("wrong", [10, -1, 2.5, np.nan, b"sofa"], ids=str)
def test_h5_labels_are_whole_numbers_below_ten(root, wrong):
    """Refused when they are asked for, and never looked at when they are not."""
    scans(labels=[wrong] * 10)(root / SCANS)
    text = refusal(lambda: load_domain(root, "SC"))
    assert SCANS in text and "0..9" in text
    assert load_domain(root, "SC", labels=False).train.shape == (10, 64, 3)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float32])
@pytest.mark.parametrize("shape", [(10,), (10, 1)])
def test_h5_labels_of_any_numeric_type_and_both_shapes(root, dtype, shape):
    """[m] and [m, 1]; 3.0 is a whole number."""
    scans(labels=np.arange(10)[::-1].astype(dtype).reshape(shape))(root / SCANS)
    y = load_domain(root, "SC").train_labels
    assert y.dtype == torch.int64 and y.tolist() == list(range(9, -1, -1))


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


def test_only_the_domain_asked_for_is_read(root):
    """Damage elsewhere does not matter."""
    cut(root / CHAIR)
    cut(root / SCANS)
    assert len(load_domain(root, "S").train) == 10


# ---------------------------------------------------------------- what is loaded
def test_frames_normalisation_order_and_labels(whole):
    """Class by class in alphabetical order; z up; mean 0, largest norm 1. ModelNet and plants are z up already."""
    for key, domain in (("M", "modelnet"), ("S", "shapenet")):
        loaded = load_domain(whole, key)
        for split in ("train", "test"):
            points, labels = getattr(loaded, split), getattr(loaded, f"{split}_labels")
            assert labels.tolist() == list(range(10)) and points.dtype == torch.float32
            for c, name in enumerate(CLASSES):
                (path,) = (whole / "PointDA_data" / domain / name / split).iterdir()
                raw = np.load(path)
                expected = unit(raw if key == "M" or name == "plant" else raw @ Y_TO_Z.T)
                assert np.allclose(points[c], expected, atol=1e-5), (domain, name)


def test_scans_are_turned_and_joined_in_the_order_of_their_files(root):
    """All *.h5 of a split, sorted by name; columns behind xyz are left out."""
    more = blobs(np.random.default_rng(5), [7, 7], 64, 6)
    write_h5(root / "PointDA_data/scannet/train_1.h5", more, np.array([[7], [7]]))
    loaded = load_domain(root, "SC")
    with h5py.File(root / SCANS) as file:
        raw, y = np.concatenate([file["data"][...], more]), [*file["label"][...], 7, 7]
    assert loaded.train_labels.tolist() == y
    for points, cloud in zip(loaded.train, raw):
        assert np.allclose(points, unit(cloud[:, :3] @ Y_TO_Z.T), atol=1e-5)


def test_normalise_by_hand():
    """Mean 0, largest norm 1, whatever place and size; a batch as each cloud alone."""
    x = 30 * torch.randn(5, 50, 3, generator=gen()) + torch.tensor([7.0, 0, -40])
    y = data.normalise(x)
    assert y.mean(1).abs().max() < 1e-5 and torch.allclose(y.norm(dim=-1).amax(1), torch.ones(5))
    assert torch.allclose(y[2], data.normalise(x[2]))
    assert torch.allclose(y, data.normalise(x / 3 + 1), atol=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "float64", ">f4", "int32"])
def test_any_kind_of_numbers(root, dtype):
    """Other precisions, byte orders and whole numbers give the float32 cloud of the same values."""
    cloud = (GOOD * 100).astype(dtype)
    np.save(root / CHAIR, np.column_stack([cloud, cloud]))  # with columns that do not count
    assert np.allclose(load_domain(root, "M").train[4], unit(cloud), atol=1e-5)


def test_clouds_of_other_sizes_are_resampled_from_their_own_points(tmp_path):
    """A short cloud is filled up with replacement, a long one keeps distinct points, up to the largest size."""
    root = make_pointda(tmp_path / "set", per_class=1, domains=("modelnet",))
    short, long = GOOD[:5], blobs(np.random.default_rng(3), [5], 90)[0]
    np.save(root / CHAIR, short)
    np.save(root / CHAIR.replace("chair", "lamp").replace("0004", "0005"), long)
    x = load_domain(root, "M").train
    assert x.shape == (10, 90, 3)
    assert len(np.unique(x[4].numpy(), axis=0)) == 5 and len(np.unique(x[5].numpy(), axis=0)) == 90
    assert len(np.unique(x[0].numpy(), axis=0)) > 40  # 64 points drawn 90 times
    assert np.allclose(
        np.unique(np.linalg.norm(np.diff(np.sort(x[5].numpy(), axis=0), axis=0), axis=1)),
        np.unique(np.linalg.norm(np.diff(np.sort(unit(long), axis=0), axis=0), axis=1)),
        atol=1e-5,
    )


def test_resample_draws_rows_of_the_file():
    """Every drawn point is one of the cloud; distinct where there are enough; the seed alone decides."""
    for P in (20, 64, 200):
        drawn = data._resample(GOOD, P, 3)
        rows = set(map(tuple, drawn))
        assert drawn.shape == (P, 3) and rows <= set(map(tuple, GOOD)) and (P > 64 or len(rows) == P)
        assert np.array_equal(drawn, data._resample(GOOD, P, 3))
    assert not np.array_equal(data._resample(GOOD, 20, 3), data._resample(GOOD, 20, 4))


def test_at_most_most_points_are_kept(whole, monkeypatch):
    """A domain is cut to MOST_POINTS points a cloud, in both kinds of file."""
    monkeypatch.setattr(data, "MOST_POINTS", 40)
    assert load_domain(whole, "M").train.shape == load_domain(whole, "SC").train.shape == (10, 40, 3)


# ---------------------------------------------------------------- counts, names, fingerprints
def officially(monkeypatch, **counts):
    monkeypatch.setattr(data, "OFFICIAL", {key: (each, each) for key, each in counts.items()})


def test_official_counts_are_the_published_totals():
    """4183/856, 17378/2492 and 6110/1769 clouds."""
    totals = {key: tuple(map(sum, splits)) for key, splits in data.OFFICIAL.items()}
    assert totals == {"M": (4183, 856), "S": (17378, 2492), "SC": (6110, 1769)}


def test_counts_and_their_text(whole):
    """The total always, the classes where labels were opened."""
    domain = load_domain(whole, "S")
    assert domain.counts["train"] == {"total": 10, "per_class": [1] * 10}
    assert data.counts_text(domain) == f"shapenet: train 10 {[1] * 10}, test 10 {[1] * 10}"
    assert data.counts_text(load_domain(whole, "SC", labels=False)) == "scannet: train 10, test 10"


@pytest.mark.parametrize("key", ["M", "SC"])
def test_a_set_of_official_size_must_have_official_classes(whole, monkeypatch, key):
    """The same total with other classes is a damaged copy; another total is a set of one's own."""
    other = (2, 0) + (1,) * 8
    officially(monkeypatch, M=other, SC=other)
    text = refusal(lambda: load_domain(whole, key))
    assert data.DOMAINS[key] in text and str(list(other)) in text
    officially(monkeypatch, M=(2,) * 10, SC=(2,) * 10)
    assert len(load_domain(whole, key).train) == 10


def test_the_name_pointda_needs_every_count(root, monkeypatch):
    """ "PointDA-10" when both domains are official; labels that were not opened count by their number."""
    one, two = (1,) * 10, (2,) * 10
    src, tgt = load_domain(root, "M"), load_domain(root, "SC", labels=False)
    officially(monkeypatch, M=one, SC=one)
    assert data.data_name(root, src, tgt) == "PointDA-10"
    for wrong in (dict(M=two, SC=one), dict(M=one, SC=two), dict(M=(2, 0) + one[2:], SC=one)):
        officially(monkeypatch, **wrong)
        assert data.data_name(root, src, tgt) == "custom: set"
    (root / "NAME").write_text("  My chairs, v2 \nnotes\n")
    assert data.data_name(root, src, tgt) == "custom: My chairs, v2"
    assert data.data_name("shapes", src, tgt) == "built-in shapes"


def test_a_relative_folder_has_a_name(whole, monkeypatch):
    """`--data .` is called after the folder."""
    domain = load_domain(whole, "M")
    monkeypatch.chdir(whole)
    assert data.data_name(".", domain, domain) == "custom: set"


def test_classes_absent_from_scans_are_warned_of(root):
    """One warning that names them; none when labels are not opened."""
    scans(labels=[0, 1, 2, 3, 4, 5, 6, 6, 9, 9])(root / SCANS)
    with pytest.warns(UserWarning, match="scannet train has no plant, sofa") as caught:
        load_domain(root, "SC")
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_domain(root, "SC", labels=False)


def test_target_labels_play_no_part(root):
    """With labels permuted inside the .h5, points and fingerprint stay; labels=False loads none."""
    src, before = load_domain(root, "M"), load_domain(root, "SC")
    with h5py.File(root / SCANS, "r+") as file:
        file["label"][...] = np.roll(file["label"][...], 3)
    after, blind = load_domain(root, "SC"), load_domain(root, "SC", labels=False)
    assert not torch.equal(before.train_labels, after.train_labels)
    for other in (after, blind):
        assert torch.equal(before.train, other.train) and torch.equal(before.test, other.test)
        assert data.fingerprint(src, before) == data.fingerprint(src, other)
    assert blind.train_labels is None and blind.test_labels is None and "per_class" not in blind.counts["train"]


def test_fingerprint_tells_points_and_roles(whole):
    """Another coordinate or the domains swapped: another fingerprint; the same files: the same."""
    m, s = load_domain(whole, "M"), load_domain(whole, "S")
    print_ = data.fingerprint(m, s)
    assert len(print_) == 64 and print_ == data.fingerprint(load_domain(whole, "M"), s) != data.fingerprint(s, m)
    s.test[9, 63, 2] += 1e-3
    assert data.fingerprint(m, s) != print_


def test_to_moves_tensors_and_keeps_the_rest(whole):
    """A Domain on another device is a new one with the same fields."""
    domain = load_domain(whole, "SC", labels=False)
    moved = domain.to("meta")
    assert moved.train.device.type == "meta" and moved.train_labels is None and moved.key == "SC"
    assert domain.train.device.type == "cpu"


# ---------------------------------------------------------------- the cache
def rewrite(path, content):
    """Other bytes of the same number at the same time: what the cache cannot see."""
    before = path.stat()
    assert len(content) == before.st_size
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_the_second_read_opens_no_npy(root):
    """One cache file a split; it stands in for files of unchanged size and time, and a touched file is read again."""
    first = load_domain(root, "M")
    assert len(list(data.CACHE.iterdir())) == 2
    rewrite(root / CHAIR, bytes((root / CHAIR).stat().st_size))
    assert torch.equal(load_domain(root, "M").train, first.train)
    os.utime(root / CHAIR)
    assert CHAIR in refusal(lambda: load_domain(root, "M"))


def test_the_second_read_opens_no_scan(root):
    """The same for .h5, whose labels are read each time."""
    first = load_domain(root, "SC")
    before = (root / SCANS).stat()
    with h5py.File(root / SCANS, "r+") as file:
        file["data"][...] = 0
        file["label"][...] = 9 - file["label"][...]
    os.utime(root / SCANS, ns=(before.st_atime_ns, before.st_mtime_ns))
    again = load_domain(root, "SC")
    assert torch.equal(again.train, first.train) and torch.equal(again.train_labels, 9 - first.train_labels)


def test_changed_added_and_removed_files_are_seen(root):
    """The cache is keyed by names, sizes and times; each class and split has its own."""
    first = load_domain(root, "M")
    np.save(root / CHAIR, GOOD[::-1].cumsum(0))
    changed = load_domain(root, "M")
    assert [torch.equal(a, b) for a, b in zip(first.train, changed.train)] == [c != 4 for c in range(10)]
    assert torch.equal(first.test, changed.test)
    np.save((root / CHAIR).with_name("another.npy"), GOOD)
    assert load_domain(root, "M").train_labels.tolist() == [0, 1, 2, 3, 4, 4, 5, 6, 7, 8, 9]
    (root / CHAIR).unlink()
    assert len(load_domain(root, "M").train) == 10


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"garbage" * 100, b"PK\x03\x04 no zip"])
def test_a_damaged_cache_is_made_anew(whole, damage):
    """Whatever is in the file, the points are those of the data set, and the file is whole again."""
    first = load_domain(whole, "S")
    kept = {path: path.read_bytes() for path in data.CACHE.iterdir()}
    for path in kept:
        path.write_bytes(damage)
    assert torch.equal(load_domain(whole, "S").train, first.train)
    assert {path: path.read_bytes() for path in data.CACHE.iterdir()} == kept


def test_without_a_writable_cache_it_goes_on(root, tmp_path, monkeypatch):
    """A read-only checkout or a full disk only costs the time of reading again."""
    first = load_domain(root, "M")
    monkeypatch.setattr(data, "CACHE", root / CHAIR)  # a file: no folder can be made there
    assert torch.equal(load_domain(root, "M").train, first.train)

    def full(path, content):
        raise UserError("no space left")

    monkeypatch.setattr(data, "CACHE", tmp_path / "full")
    monkeypatch.setattr(data, "write_atomically", full)
    assert torch.equal(load_domain(root, "M").train, first.train)


def test_reading_leaves_the_data_folder_alone(whole):
    """It may be shared and read-only."""
    before = sorted(whole.rglob("*"))
    for key in data.DOMAINS:
        load_domain(whole, key)
    assert sorted(whole.rglob("*")) == before


def test_linked_folders_share_the_cache(root, tmp_path):
    """The set behind a symbolic link is the same set; a link to one class alone works too."""
    first = load_domain(root, "M")
    (tmp_path / "link").symlink_to(root)
    assert torch.equal(load_domain(tmp_path / "link", "M").train, first.train)
    assert len(list(data.CACHE.iterdir())) == 2
    sofa = root / "PointDA_data/modelnet/sofa"
    sofa.rename(tmp_path / "sofa")
    sofa.symlink_to(tmp_path / "sofa")
    assert torch.equal(load_domain(root, "M").train, first.train)


def test_two_sets_do_not_share_a_cache(tmp_path):
    """Equal names and sizes in another folder are another set."""
    a, b = (load_domain(make_pointda(tmp_path / str(s), 1, seed=s, domains=("modelnet",)), "M") for s in (0, 1))
    assert len(list(data.CACHE.iterdir())) == 4 and not torch.equal(a.train, b.train)


# ---------------------------------------------------------------- PointSegDA and the built-in shapes
@pytest.fixture
def bodies(tmp_path):
    return make_pointsegda(tmp_path / "set")


def test_bodies_are_as_in_the_files(bodies):
    """No frame, no normalisation; labels 1..8 become 0..7; three splits."""
    body = load_domain(bodies, "seg_F")
    raw = np.load(bodies / BODY)
    assert torch.equal(body.train[1], torch.from_numpy(raw[:, :3]))
    assert torch.equal(body.train_labels[1], torch.from_numpy(raw[:, 3]).long() - 1)
    assert body.val.shape == body.test.shape == (3, 64, 3) and sorted(body.val_labels.unique().tolist()) == list(
        range(8)
    )
    assert data.counts_text(body) == "faust: train 3, val 3, test 3"


def with_label(value):
    def spoil(path):
        body = np.load(path)
        body[7, 3] = value
        np.save(path, body)

    return spoil


BAD_BODY = {
    "no label column": (lambda path: np.save(path, np.load(path)[:, :3]), "(64, 3)"),
    "one column more": (lambda path: np.save(path, np.load(path)[:, [0, 1, 2, 3, 3]]), "(64, 5)"),
    "fewer points": (lambda path: np.save(path, np.load(path)[:50]), "(50, 4)"),
    "label 0": (with_label(0), "1..8"),
    "label 9": (with_label(9), "1..8"),
    "label 1.5": (with_label(1.5), "1..8"),
    "label NaN": (with_label(np.nan), "1..8"),
    "NaN": (lambda path: np.save(path, np.load(path) * [1, np.nan, 1, 1]), "NaN or Inf"),
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


@pytest.mark.parametrize("missing", ["val", ""])
def test_a_missing_body_folder_is_named(bodies, missing):
    """The folder and where PointSegDA is to be had; it is not what `make data` fetches."""
    folder = bodies / "PointSegDA/mit" / missing
    folder.rename(bodies / "away")
    text = refusal(lambda: load_domain(bodies, "seg_M"))
    assert str(folder) in text and "PointSegDA (linked from" in text
    folder.mkdir()
    assert str(folder) in refusal(lambda: load_domain(bodies, "seg_M"))


def test_built_in_shapes_are_a_domain():
    """The same frame and unit sphere, no file, labels only if asked for."""
    src, tgt = load_domain("shapes", "M"), load_domain("shapes", "M", labels=False)
    assert src.train_labels is not None and tgt.train_labels is None and torch.equal(src.test, tgt.test)
    assert torch.allclose(src.train.norm(dim=-1).amax(1), torch.ones(len(src.train)))
    assert not data.CACHE.exists()


# ---------------------------------------------------------------- directions
def test_split_task_knows_every_direction():
    """Six of PointDA-10, and all pairs of PointSegDA, a domain with itself included."""
    assert {task: data.split_task(task) for task in data.TASKS} == {
        "M_S": ("M", "S"),
        "M_SC": ("M", "SC"),
        "S_M": ("S", "M"),
        "S_SC": ("S", "SC"),
        "SC_M": ("SC", "M"),
        "SC_S": ("SC", "S"),
    }
    for a in "FMAS":
        for b in "FMAS":
            assert data.split_task(f"seg_{a}_{b}") == (f"seg_{a}", f"seg_{b}")
    assert data.splits_of("seg_M") == ("train", "val", "test") and data.splits_of("M") == ("train", "test")


@pytest.mark.parametrize(
    "task",
    [
        "",
        None,
        "M",
        "M_M",
        "m_s",
        "M_S_SC",
        "M_SC_",
        "M-S",
        "F_A",
        "seg_",
        "seg_F",
        "seg_M_SC",
        "seg_SC_M",
        "seg_seg_F_A",
        "seg_F_A_M",
        "shapes",
    ],
)
def test_split_task_refuses_nonsense(task):
    """The message names the flag and the choices."""
    text = refusal(lambda: data.split_task(task))
    assert f"--task {task}:" in text and "M_SC" in text and "seg_F_A" in text


def test_the_crop_is_for_models_to_scans_alone():
    """Synthetic source, real target."""
    assert [task for task in data.TASKS if data.is_synthetic_to_real(*data.split_task(task))] == ["M_SC", "S_SC"]


# ---------------------------------------------------------------- streams and subsets
@pytest.mark.parametrize("n, batch", [(10, 3), (12, 4), (7, 7), (101, 16)])
def test_a_stream_is_full_batches_of_permutations(n, batch):
    """n // batch batches an epoch, in which no index comes twice; another order in each epoch."""
    steps = n // batch
    epochs = [torch.cat([data.stream(n, batch, e * steps + i, 0, "src") for i in range(steps)]) for e in range(4)]
    for indices in epochs:
        assert len(indices) == steps * batch == len(indices.unique()) and 0 <= indices.min() and indices.max() < n
    assert len({tuple(indices.tolist()) for indices in epochs}) == 4


def test_over_many_epochs_a_stream_leaves_nobody_out():
    """Which samples the last, incomplete batch would have had changes from epoch to epoch."""
    seen = torch.cat([data.stream(10, 4, step, 0) for step in range(200)]).bincount(minlength=10)
    assert seen.sum() == 800 and seen.min() > 60


def test_a_stream_is_a_function_of_step_and_words():
    """Asked in any order, twice, or after other streams, a step is the same; another seed or name is another stream."""
    ask = lambda step, *words: data.stream(50, 8, step, *words).tolist()
    forward = [ask(step, 0, "src") for step in range(30)]
    assert [ask(step, 0, "src") for step in reversed(range(30))] == forward[::-1]
    for words in ((1, "src"), (0, "tgt")):
        assert all(ask(step, *words) != forward[step] for step in range(30))


@pytest.mark.parametrize("n, batch", [(3, 8), (5, 6), (1, 4), (4, 8)])
def test_a_batch_larger_than_the_domain_wraps(n, batch):
    """Each index comes as often as any other, give or take one, and steps differ."""
    draws = [data.stream(n, batch, step, 0) for step in range(20)]
    for indices in draws:
        count = indices.bincount(minlength=n)
        assert len(indices) == batch and count.max() - count.min() <= 1
    assert n == 1 or len({tuple(indices.tolist()) for indices in draws}) > 5


def test_gather_points_is_plain_indexing():
    """(B, N, 3) and (B, N)."""
    x, index = clouds(3, 20), torch.randint(20, (3, 7), generator=gen(1))
    assert torch.equal(data.gather_points(x, index), torch.stack([c[i] for c, i in zip(x, index)]))
    assert torch.equal(data.gather_points(x[..., 0], index), torch.stack([c[i, 0] for c, i in zip(x, index)]))


def test_subsample_is_distinct_where_it_can_be():
    """Without replacement for n <= N, each cloud its own draw; with replacement beyond."""
    x = clouds(3, 50)
    for n in (1, 20, 50):
        index = data.subsample_index(x, n, gen())
        assert index.shape == (3, n) and all(len(row.unique()) == n for row in index)
    index = data.subsample_index(x, 20, gen())
    assert set(index[0].tolist()) != set(index[1].tolist())
    long = data.subsample_index(x, 80, gen())
    assert long.shape == (3, 80) and long.max() < 50 and len(long[0].unique()) > 30
    assert torch.equal(data.subsample(x, 20, gen()), data.gather_points(x, index))


def test_subsample_takes_every_point_alike():
    """Each of 10 points is in a share n / N of the draws."""
    share = data.subsample_index(clouds(1, 10).expand(4000, 10, 3), 3, gen()).flatten().bincount(minlength=10) / 4000
    assert (share - 0.3).abs().max() < 0.03


def test_the_evaluation_subset_is_fixed():
    """Distinct points of each cloud, the same in every call, with their labels; another size is another draw."""
    x = clouds(4, 60)
    labels = torch.arange(60).expand(4, 60)
    torch.manual_seed(1)
    chosen, y = data.evaluation_subset(x, 25, labels)
    torch.manual_seed(2)
    assert torch.equal(chosen, data.evaluation_subset(x, 25)) and chosen.shape == (4, 25, 3)
    assert torch.equal(chosen, data.gather_points(x, y)) and all(len(row.unique()) == 25 for row in y)
    assert set(y[0].tolist()) != set(y[1].tolist())


# ---------------------------------------------------------------- augmentation
AUGMENTATIONS = {
    "rotate_z": data.rotate_z,
    "scale": data.scale,
    "jitter": data.jitter,
    "elastic": data.elastic,
    "crop": data.half_space_crop,
    "strong source": lambda x, g: data.strong_view(x, 64, g, source=True, crop=True),
    "strong target": lambda x, g: data.strong_view(x, 64, g, source=False),
    "weak": lambda x, g: data.weak_view(x, 64, g),
    "plain": lambda x, g: data.plain_view(x, 64, g),
}


@pytest.mark.parametrize("augment", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
def test_augmentations_draw_from_their_generator_alone(augment):
    """The same seed gives the same view, another another; the global generator and the input are left alone."""
    x = clouds()
    before, state = x.clone(), torch.get_rng_state()
    views = [augment(x, gen(seed)) for seed in (0, 0, 1)]
    assert torch.equal(views[0], views[1]) and not torch.equal(views[0], views[2])
    assert torch.equal(x, before) and torch.equal(torch.get_rng_state(), state)
    assert views[0].isfinite().all() and views[0].dtype == torch.float32 and len(views[0]) == 4


@pytest.mark.parametrize("augment", [data.rotate_z, data.scale, data.jitter, data.elastic, data.half_space_crop])
def test_each_cloud_has_its_own_draw(augment):
    """Equal clouds in a batch come out different."""
    x = clouds(1).expand(2, -1, -1)
    a, b = augment(x, gen(3))
    assert (a - b).abs().max() > 1e-3


def test_rotate_z_is_a_turn_about_the_vertical():
    """z, norms and handedness stay; the angles fill the circle."""
    x = clouds(500, 8)
    y = data.rotate_z(x, gen())
    assert torch.equal(y[..., 2], x[..., 2]) and torch.allclose(y.norm(dim=-1), x.norm(dim=-1), atol=1e-6)
    cross = lambda c: torch.linalg.cross(c[:, 0], c[:, 1])[:, 2]
    assert torch.allclose(cross(y), cross(x), atol=1e-5)
    angle = torch.atan2(
        *(data.rotate_z(torch.tensor([[[1.0, 0, 0]]]).expand(4000, 1, 3), gen())[:, 0, i] for i in (1, 0))
    )
    assert (angle.histc(8, -torch.pi, torch.pi) / 500 - 1).abs().max() < 0.2


def test_scale_is_one_factor_a_cloud():
    """In [.7, 1.5], filled evenly, the same for all points and axes."""
    x = clouds(2000, 4)
    factor = data.scale(x, gen()) / x
    assert torch.allclose(factor, factor[:, :1, :1].expand_as(factor), atol=1e-4)
    factor = factor[:, 0, 0]
    assert 0.7 <= factor.min() < 0.71 and 1.49 < factor.max() <= 1.5 and abs(factor.mean() - 1.1) < 0.02


@pytest.mark.parametrize("sigma, clip", [(0.01, 0.05), (0.01, 0.02)])
def test_jitter_is_clipped_noise(sigma, clip):
    """Normal of the given width, cut at the clip."""
    noise = data.jitter(torch.zeros(20, 1000, 3), gen(), sigma, clip)
    assert noise.abs().max() <= clip and abs(noise.mean()) < 1e-3
    expected = np.clip(np.random.default_rng(0).normal(scale=sigma, size=10**6), -clip, clip).std()
    assert abs(noise.std() - expected) < 0.03 * sigma
    assert ((noise.abs() == clip).any()) == (clip == 0.02)  # 2 sigma is often met, 5 sigma hardly ever


def test_half_space_crop_keeps_one_side_of_a_plane():
    """Exactly round(.7 N) points can be drawn; a plane parts them from the others; N points come out."""
    n = 20
    x = clouds(1, n, seed=4)
    cropped = data.half_space_crop(x.expand(1, n, 3), gen(1))
    assert cropped.shape == (1, n, 3)
    # a long draw from one and the same direction shows all candidates
    direction = F.normalize(torch.randn(1, 3, 1, generator=gen(1)), dim=1)
    height = (x @ direction)[0, :, 0]
    kept = set(map(tuple, x[0][height.argsort()[-14:]].tolist()))
    assert set(map(tuple, cropped[0].tolist())) <= kept


@pytest.mark.parametrize("n", [10, 15, 64])
def test_half_space_crop_draws_from_seventy_percent(n):
    """By indices: 1-d positions on a line tell the candidates, whose number is round(.7 N), the top or the bottom."""
    x = torch.arange(n, dtype=torch.float32)[:, None] * torch.tensor([1.0, 0.3, -0.5])
    cropped = data.half_space_crop(x.expand(400, n, 3), gen())[..., 0].long()  # (400, N) indices
    kept = round(0.7 * n)
    top, bottom = (cropped >= n - kept).all(1), (cropped < kept).all(1)
    assert (top | bottom).all() and 100 < top.sum() < 300
    assert cropped[top].unique().tolist() == list(range(n - kept, n)) and cropped[bottom].unique().tolist() == list(
        range(kept)
    )
    assert all(len(row.unique()) < n for row in cropped)


@pytest.mark.parametrize("cells", [5, 16])
def test_twice_box_is_two_average_pools(cells):
    """The smoothing of a noise grid: a box of three cells an axis with zeros outside, two times."""
    grid = torch.randn(2, 3, cells, cells, cells, generator=gen())
    pooled = F.avg_pool3d(F.avg_pool3d(grid, 3, 1, 1), 3, 1, 1)
    B = data._twice_box(cells, grid)
    assert torch.allclose(torch.einsum("bcxyz,xi,yj,zk->bcijk", grid, B, B, B), pooled, atol=1e-5)


def test_elastic_moves_a_share_of_the_clouds():
    """p = 0 none, p = 1 all, p = .95 all but some five in a hundred."""
    x = clouds(400, 4)
    moved = lambda p: (data.elastic(x, gen(), p) != x).flatten(1).any(1)
    assert not moved(0.0).any() and moved(1.0).all()
    assert 6 <= (~moved(0.95)).sum() <= 36  # 20 expected, standard deviation 4.4


def test_elastic_is_smooth():
    """Neighbours move alike, points apart do not; the shift has the size that smoothed noise must have."""
    x = clouds(40, 200)
    near = x + 0.004 * F.normalize(torch.randn(x.shape, generator=gen(9)), dim=-1)
    both = data.elastic(torch.cat([x, near], 1), gen(), p=1.0) - torch.cat([x, near], 1)
    shift, shift_near = both.split(200, 1)
    size = shift.norm(dim=-1).mean()
    assert 0.1 < size < 1
    assert (shift - shift_near).norm(dim=-1).mean() < 0.05 * size
    assert (shift - shift.flip(1)).norm(dim=-1).mean() > 0.5 * size


def test_elastic_looks_its_noise_up_in_x_y_z(monkeypatch):
    """A ramp along one axis of the grid in place of noise moves points by that coordinate."""
    ramp = lambda axis: (
        lambda B, C, *cells, **_: (
            torch.linspace(-1.5, 1.5, cells[axis]).view([-1 if i == axis else 1 for i in range(3)]).expand(B, C, *cells)
        )
    )
    monkeypatch.setattr(data, "_twice_box", lambda cells, like: torch.eye(cells))
    x = clouds(2, 50) * 0.4
    for axis in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(torch, "randn", ramp(axis))
            y = data.elastic(x, gen(), p=1.0)
        once = x + 0.4 * x[..., axis, None]
        assert torch.allclose(y, once + 1.6 * once[..., axis, None], atol=1e-4)


def test_far_points_stay_finite_in_elastic():
    """Beyond the grid the border counts."""
    x = clouds(2, 30) * 50
    assert ((data.elastic(x, gen(), p=1.0) - x).norm(dim=-1) < 5).all()


def test_views_have_the_recipe_of_their_role():
    """Strong views move points, weak ones by jitter alone; only the source turns, plain views clip at .02."""
    x, n = clouds(8, 64), 64
    match = lambda y: torch.cdist(y, x).amin(2)  # distance of each point of a view to the cloud
    assert match(data.weak_view(x, n, gen())).max() < 0.05 * 3**0.5
    assert match(data.strong_view(x, n, gen(), source=False)).mean() > 0.05
    radius = lambda y: y.norm(dim=-1).sort(1).values
    assert (radius(data.plain_view(x, n, gen())) - radius(x)).abs().max() < 0.02 * 3**0.5
    assert match(data.plain_view(x, n, gen())).mean() > 0.05
    with pytest.MonkeyPatch.context() as patch:
        calls = []
        for name in ("rotate_z", "elastic", "scale", "jitter", "half_space_crop"):
            f = getattr(data, name)
            patch.setattr(data, name, lambda *a, name=name, f=f, **k: calls.append(name) or f(*a, **k))
        for roles, expected in (
            (dict(source=True), ["rotate_z", "elastic", "scale", "jitter"]),
            (dict(source=True, crop=True), ["rotate_z", "elastic", "scale", "jitter", "half_space_crop"]),
            (dict(source=False, crop=True), ["elastic", "scale", "jitter"]),
        ):
            calls.clear()
            assert data.strong_view(x, 32, gen(), **roles).shape == (8, 32, 3) and calls == expected


def test_points_keep_their_labels_in_a_plain_view():
    """Height is not turned, so it tells which point a label came from."""
    x = torch.zeros(3, 50, 3)
    x[..., 2] = torch.arange(50) / 5
    labels = torch.arange(50).expand(3, 50)
    y, moved = data.plain_view_labelled(x, labels, 30, gen())
    assert y.shape == (3, 30, 3) and torch.equal((y[..., 2] * 5).round().long(), moved)
    assert all(len(row.unique()) == 30 for row in moved)
