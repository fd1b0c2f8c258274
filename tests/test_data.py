"""data.py: what is loaded from tiny files of the official layouts; counts, names and fingerprints; directions."""

import warnings

import h5py
import numpy as np
import pytest
import torch
from fixtures import blobs, make_pointda, make_pointsegda, refusal, write_h5

import data
import shapes
from data import CLASSES, load_domain

CHAIR = "PointDA_data/modelnet/chair/train/chair_0.npy"  # with one cloud a class
SCANS = "PointDA_data/scannet/train_0.h5"
BODY = "PointSegDA/faust/train/1.npy"
Y_TO_Z = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]], np.float32)  # (x, y, z) -> (x, -z, y)


def unit(points):
    """Mean 0 and largest norm 1, by numpy in double precision."""
    points = np.asarray(points, np.float64)
    points = points - points.mean(0)
    return points / np.linalg.norm(points, axis=1).max()


GOOD = blobs(np.random.default_rng(1), [4], 64)[0]


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


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float32])
@pytest.mark.parametrize("shape", [(10,), (10, 1)])
def test_h5_labels_of_any_numeric_type_and_both_shapes(root, dtype, shape):
    """[m] and [m, 1]; 3.0 is a whole number."""
    write_h5(
        root / SCANS, blobs(np.random.default_rng(2), range(10), 64, 6), np.arange(9, -1, -1, dtype).reshape(shape)
    )
    y = load_domain(root, "SC").train_labels
    assert y.dtype == torch.int64 and y.tolist() == list(range(9, -1, -1))


def test_normalise_by_hand():
    """Mean 0, largest norm 1, whatever place and size; a batch as each cloud alone."""
    x = 30 * torch.randn(5, 50, 3, generator=torch.Generator().manual_seed(0)) + torch.tensor([7.0, 0, -40])
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
    np.save(root / CHAIR.replace("chair", "lamp"), long)
    x = load_domain(root, "M").train
    assert x.shape == (10, 90, 3)
    assert len(np.unique(x[4].numpy(), axis=0)) == 5 and len(np.unique(x[5].numpy(), axis=0)) == 90
    assert len(np.unique(x[0].numpy(), axis=0)) > 40  # 64 points drawn 90 times
    assert np.allclose(x[5], unit(long), atol=1e-5)


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


def test_shadow_files_of_a_mac_are_passed_over(root):
    """Files that begin with a dot are no clouds."""
    (root / CHAIR).with_name("._chair_0.npy").write_bytes(b"\0\5\26\7")
    assert len(load_domain(root, "M").train) == 10


def test_only_the_domain_asked_for_is_read(root):
    """Damage elsewhere does not matter."""
    (root / CHAIR).write_bytes(b"")
    (root / SCANS).write_bytes(b"")
    assert len(load_domain(root, "S").train) == 10


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


def test_bodies_have_a_name_of_their_own(tmp_path):
    """PointSegDA/NAME, never the NAME of the classes beside it."""
    root = make_pointsegda(tmp_path / "set", per_split=1, domains=("faust", "mit"))
    (root / "NAME").write_text("My chairs\n")
    src, tgt = load_domain(root, "seg_F"), load_domain(root, "seg_M", labels=False)
    assert data.data_name(root, src, tgt) == "custom: set"
    (root / "PointSegDA/NAME").write_text("My bodies\n")
    assert data.data_name(root, src, tgt) == "custom: My bodies"


def test_a_relative_folder_has_a_name(whole, monkeypatch):
    """`--data .` is called after the folder."""
    domain = load_domain(whole, "M")
    monkeypatch.chdir(whole)
    assert data.data_name(".", domain, domain) == "custom: set"


def test_classes_absent_from_scans_are_warned_of(root):
    """One warning that names them, whatever the number of splits; none when labels are not opened."""
    write_h5(root / SCANS, blobs(np.random.default_rng(2), range(10), 64), [0, 1, 2, 3, 4, 5, 6, 6, 9, 9])
    write_h5(root / SCANS.replace("train", "test"), blobs(np.random.default_rng(2), range(9), 64), range(9))
    with pytest.warns(UserWarning, match="scannet train has no plant, sofa; test has no table; mean") as caught:
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


def test_without_labels_no_label_is_read(root, monkeypatch):
    """labels=False reads `data` of a scan file and no element of `label`, with and without the cache."""
    read, names = h5py.Dataset.__getitem__, []
    monkeypatch.setattr(h5py.Dataset, "__getitem__", lambda self, *a: names.append(self.name) or read(self, *a))
    for _ in range(2):
        load_domain(root, "SC", labels=False)
        assert set(names) == {"/data"}
    load_domain(root, "SC")
    assert "/label" in names


def test_fingerprint_tells_points_and_roles(whole):
    """The same files give the same; the domains swapped or any coordinate moved another."""
    m, s = load_domain(whole, "M"), load_domain(whole, "S")
    prints = [data.fingerprint(m, s), data.fingerprint(s, m)]
    assert len(prints[0]) == 64 and prints[0] == data.fingerprint(load_domain(whole, "M"), s)
    for points in (m.train, m.test, s.train, s.test):
        points[9, 63, 2] += 1e-3
        prints.append(data.fingerprint(m, s))
    assert len(set(prints)) == 6


def test_to_moves_tensors_and_keeps_the_rest(whole):
    """A Domain on another device is a new one with the same fields."""
    domain = load_domain(whole, "SC", labels=False)
    moved = domain.to("meta")
    assert moved.train.device.type == "meta" and moved.train_labels is None and moved.key == "SC"
    assert domain.train.device.type == "cpu"


# ---------------------------------------------------------------- PointSegDA and the built-in shapes
@pytest.fixture
def bodies(tmp_path):
    return make_pointsegda(tmp_path / "set", per_split=2, domains=("faust",))


def test_bodies_are_as_in_the_files(bodies):
    """No frame, no normalisation; labels 1..8 become 0..7; three splits."""
    body = load_domain(bodies, "seg_F")
    raw = np.load(bodies / BODY)
    assert torch.equal(body.train[1], torch.from_numpy(raw[:, :3]))
    assert torch.equal(body.train_labels[1], torch.from_numpy(raw[:, 3]).long() - 1)
    assert body.val.shape == body.test.shape == (2, 64, 3) and body.val_labels.unique().tolist() == list(range(8))
    assert data.counts_text(body) == "faust: train 2, val 2, test 2"
    assert data.data_name(bodies, body, body) == "custom: set"  # there are no official counts to compare with


def test_built_in_shapes_are_a_domain(monkeypatch):
    """What shapes.make gives, in the unit sphere but for bodies; no file; labels only if asked for."""
    made = blobs(np.random.default_rng(0), range(10), 64)
    monkeypatch.setattr(shapes, "make", lambda key, split: (made, np.arange(10)))
    src, tgt = load_domain("shapes", "M"), load_domain("shapes", "M", labels=False)
    assert src.train_labels.tolist() == list(range(10)) and tgt.train_labels is None
    assert torch.equal(src.test, tgt.test) and np.allclose(src.test[3], unit(made[3]), atol=1e-5)
    assert torch.equal(load_domain("shapes", "seg_F").val, torch.from_numpy(made)) and not data.CACHE.exists()


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


NONSENSE = ("", None, "M", "M_M", "m_s", "M_S_SC", "M_SC_", "M-S", "F_A", "shapes")
NONSENSE_SEG = ("seg_", "seg_F", "seg_M_SC", "seg_SC_M", "seg_seg_F_A", "seg_F_A_M")


@pytest.mark.parametrize("task", NONSENSE + NONSENSE_SEG)
def test_split_task_refuses_nonsense(task):
    """The message names the flag and the choices."""
    text = refusal(lambda: data.split_task(task))
    assert f"--task {task}:" in text and "M_SC" in text and "seg_F_A" in text
