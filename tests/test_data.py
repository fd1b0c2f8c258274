"""data.py: what is loaded from tiny files of the official layouts; counts, names and fingerprints; directions."""

import warnings
from types import ModuleType

import h5py
import numpy as np
import pytest
import torch
from fixtures import blobs, make_pointda, make_pointsegda, refusal, write_h5

import data
from data import load_domain
from datasets import files, graspnet, pointda, pointsegda, shapes
from datasets.pointda import CLASSES

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
    y = files.normalise(x)
    assert y.mean(1).abs().max() < 1e-5 and torch.allclose(y.norm(dim=-1).amax(1), torch.ones(5))
    assert torch.allclose(y[2], files.normalise(x[2]))
    assert torch.allclose(y, files.normalise(x / 3 + 1), atol=1e-4)


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
        drawn = files.resample(GOOD, P, 3)
        rows = set(map(tuple, drawn))
        assert drawn.shape == (P, 3) and rows <= set(map(tuple, GOOD)) and (P > 64 or len(rows) == P)
        assert np.array_equal(drawn, files.resample(GOOD, P, 3))
    assert not np.array_equal(files.resample(GOOD, 20, 3), files.resample(GOOD, 20, 4))


def test_at_most_most_points_are_kept(whole, monkeypatch):
    """A domain is cut to MOST_POINTS points a cloud, in both kinds of file."""
    monkeypatch.setattr(files, "MOST_POINTS", 40)
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
    monkeypatch.setattr(pointda, "OFFICIAL", {key: (each, each) for key, each in counts.items()})


def test_official_counts_are_the_published_totals():
    """4183/856, 17378/2492 and 6110/1769 clouds."""
    totals = {key: tuple(map(sum, splits)) for key, splits in pointda.OFFICIAL.items()}
    assert totals == {"M": (4183, 856), "S": (17378, 2492), "SC": (6110, 1769)}


def test_counts_and_their_text(whole):
    """The total always, the classes where labels were opened."""
    domain = load_domain(whole, "S")
    assert domain.counts["train"] == {"total": 10, "per_class": [1] * 10}
    assert str(domain) == f"shapenet: train 10 {[1] * 10}, test 10 {[1] * 10}"
    assert str(load_domain(whole, "SC", labels=False)) == "scannet: train 10, test 10"


@pytest.mark.parametrize("key", ["M", "SC"])
def test_a_set_of_official_size_must_have_official_classes(whole, monkeypatch, key):
    """The same total with other classes is a damaged copy; another total is a set of one's own."""
    other = (2, 0) + (1,) * 8
    officially(monkeypatch, M=other, SC=other)
    text = refusal(lambda: load_domain(whole, key))
    assert pointda.DOMAINS[key] in text and str(list(other)) in text
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


def test_size_counts_clouds_without_reading_them(root):
    """What load_domain would give, split by split; damaged clouds count, too."""
    make_pointsegda(root, per_split=3, domains=("faust",))
    (root / CHAIR).write_bytes(b"")
    (root / BODY).write_bytes(b"")
    for key, dataset, n in (("M", pointda, 10), ("S", pointda, 10), ("SC", pointda, 10), ("seg_F", pointsegda, 3)):
        assert [dataset.size(root, key, split) for split in dataset.SPLITS] == [n] * len(dataset.SPLITS)
    assert [pointda.size("shapes", key, split) for key in ("M", "SC") for split in ("train", "test")] == [400, 200] * 2
    assert [pointsegda.size("shapes", "seg_A", split) for split in pointsegda.SPLITS] == [40, 10, 20]
    missing = refusal(lambda: pointsegda.size(root, "seg_M", "train"))
    assert "PointSegDA/mit/train" in missing and pointsegda.REMEDY in missing


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
    assert str(body) == "faust: train 2, val 2, test 2"
    assert data.data_name(bodies, body, body) == "custom: set"  # there are no official counts to compare with


def test_built_in_shapes_are_a_domain(monkeypatch):
    """What shapes.make gives, in the unit sphere but for bodies; no file; labels only if asked for."""
    made = blobs(np.random.default_rng(0), range(10), 64)
    monkeypatch.setattr(shapes, "make", lambda key, split: (made, np.arange(10)))
    src, tgt = load_domain("shapes", "M"), load_domain("shapes", "M", labels=False)
    assert src.train_labels.tolist() == list(range(10)) and tgt.train_labels is None
    assert torch.equal(src.test, tgt.test) and np.allclose(src.test[3], unit(made[3]), atol=1e-5)
    assert torch.equal(load_domain("shapes", "seg_F").val, torch.from_numpy(made)) and not files.CACHE.exists()


# ---------------------------------------------------------------- directions
SIX = ["M_S", "M_SC", "S_M", "S_SC", "SC_M", "SC_S"]


def test_directions_are_the_pairs_of_each_data_set():
    """Six of PointDA-10, twelve of PointSegDA, and a domain with itself: the oracle."""
    ways = data.directions()
    assert [name for name, way in ways.items() if way.dataset is pointda and not way.oracle] == SIX
    assert len(ways) == 6 + 3 + 12 + 4 + 6 + 3 + 4 and all(data.direction(name) == way for name, way in ways.items())
    for name, source, target in (("M_SC", "M", "SC"), ("SC_S", "SC", "S"), ("S_S", "S", "S")):
        way = data.direction(name)
        assert (way.name, way.source, way.target, way.oracle) == (name, source, target, source == target)
        assert way.dataset.classes("data") == CLASSES and not way.per_point
    for a in "FMAS":
        for b in "FMAS":
            way = data.direction(f"seg_{a}_{b}")
            assert (way.source, way.target, way.oracle) == (f"seg_{a}", f"seg_{b}", a == b)
            assert way.dataset.classes("data") == pointsegda.CLASSES and way.per_point and not way.crop


NONSENSE = ("", None, "M", "M_X", "m_s", "M_S_SC", "M_SC_", "M-S", "F_A", "shapes")
NONSENSE_SEG = ("seg_", "seg_F", "seg_M_SC", "seg_SC_M", "seg_seg_F_A", "seg_F_A_M", "seg_F_seg_A")


@pytest.mark.parametrize("task", NONSENSE + NONSENSE_SEG)
def test_direction_refuses_nonsense(task):
    """The message names the flag and the choices."""
    text = refusal(lambda: data.direction(task))
    assert f"--task {task}:" in text and "M_SC" in text and "seg_F_A" in text and "oracle" in text


# ---------------------------------------------------------------- a further data set
TINY = """
import numpy as np

NAME, CLASSES, DOMAINS, PREFIX = "Tiny", ("ball", "plate", "rod"), {"tiny_A": "first", "tiny_B": "scans"}, "tiny_"
FRAMED = True
SPLITS, PER_POINT, POINTS, SCANS = ("train", "test"), False, 50, {"tiny_B"}

def classes(root):
    return CLASSES


def load(root, key, split, labels):
    y = np.arange(12) % len(CLASSES)
    rng = np.random.default_rng([*DOMAINS].index(key) * len(SPLITS) + SPLITS.index(split))
    points = rng.normal(size=(12, 60, 3)) / (1 + y[:, None, None])
    return points.astype(np.float32), y  # labels even where they were not asked for

def size(root, key, split):
    return 12

def check(root, key, counts):
    assert counts["train"] == {"total": 12, "per_class": [4, 4, 4]}

def official(key, counts):
    return counts["train"]["total"] == 12
"""


@pytest.fixture
def tiny(monkeypatch):
    """A data set of three classes, entered in SOURCES."""
    module = ModuleType("tiny")
    exec(TINY, vars(module))
    monkeypatch.setattr(data, "SOURCES", (*data.SOURCES, module))
    return module


def test_a_further_data_set_is_one_module_and_one_entry(tiny, tmp_path):
    """It gives directions, loads, is counted and named, and brings its classes along; the others stay as they are."""
    way = data.direction("tiny_A_B")
    assert (way.source, way.target) == ("tiny_A", "tiny_B")
    assert way.crop and not way.per_point and not way.oracle and not data.direction("tiny_B_A").crop
    assert data.direction("tiny_B_B").oracle and data.direction("M_S").dataset is pointda
    src, tgt = load_domain(tmp_path, way.source), load_domain(tmp_path, way.target, labels=False)
    assert (
        src.train.shape == (12, 60, 3) and src.classes == ("ball", "plate", "rod") and src.splits == ("train", "test")
    )
    assert src.train_labels.tolist() == [0, 1, 2] * 4 and tgt.train_labels is None and tgt.test_labels is None
    assert str(src) == "first: train 12 [4, 4, 4], test 12 [4, 4, 4]"
    assert str(tgt) == "scans: train 12, test 12" and data.data_name(tmp_path, src, tgt) == "Tiny"
    assert data.fingerprint(src, tgt) != data.fingerprint(tgt, src)
    for wrong in ("tiny_A_C", "tiny_A_S", "M_tiny_A"):
        assert "tiny_A_B" in refusal(lambda: data.direction(wrong))


def test_a_further_set_of_ones_own_is_called_by_its_note(tiny, tmp_path, monkeypatch):
    """Counts that are not official: the first line of NAME in the data folder, or in the set's own folder there."""
    monkeypatch.setattr(tiny, "official", lambda key, counts: False)
    domain = load_domain(tmp_path, "tiny_A")
    (tmp_path / "NAME").write_text("My clouds\n")
    assert data.data_name(tmp_path, domain, domain) == "custom: My clouds"
    (tmp_path / "Tiny").mkdir()
    (tmp_path / "Tiny/NAME").write_text("My tiny ones\n")
    assert data.data_name(tmp_path, domain, domain) == "custom: My tiny ones"


def test_graspnet_in_its_official_layout(tmp_path):
    """Rendered clouds of both cameras are one domain, a fifth held out; a class may be absent; unit spheres."""
    rng = np.random.default_rng(0)
    for split, per_class in (("train", 2), ("test", 1)):
        for place in ("Synthetic/kinect", "Synthetic/realsense", "Real/kinect")[2 * (split == "test") :]:
            for c in (0, 3, 9):
                folder = tmp_path / graspnet.FOLDER / split / place / str(c)
                folder.mkdir(parents=True)
                for i in range(per_class):
                    np.savetxt(folder / f"scene_{i:04}_0001.xyz", rng.normal(size=(40, 3)) + 7)
    with pytest.warns(UserWarning, match="train has no can, banana, .*; test has no box, can"):
        src = load_domain(tmp_path, "grasp_Syn")
    tgt = load_domain(tmp_path, "grasp_Kin", labels=False)
    assert src.train.shape == (10, 40, 3) and src.train_labels.tolist() == [0, 0, 3, 3, 9, 9, 0, 0, 9, 9]
    assert src.test_labels.tolist() == [3, 3] and len(tgt.train) == 6 and tgt.train_labels is None
    assert torch.allclose(src.train.norm(dim=2).amax(1), torch.ones(10)) and src.train.mean(1).abs().max() < 1e-6
    way = data.direction("grasp_Syn_Kin")
    assert not way.crop and way.dataset.size(tmp_path, way.target, "train") == 6
    assert "realsense" in refusal(lambda: load_domain(tmp_path, "grasp_RS"))
    assert "ImplicitPCDA" in refusal(lambda: load_domain(tmp_path / "no" / "where", "grasp_RS"))
    assert "no built-in shapes" in refusal(lambda: load_domain("shapes", "grasp_Syn"))
    full = {"train": {"total": 17144, "per_class": list(graspnet.OFFICIAL["grasp_Syn"][0])}, "test": {"total": 4285}}
    assert graspnet.official("grasp_Syn", full) and not graspnet.official("grasp_Syn", src.counts)
    full["train"]["per_class"][:2] = 2048, 1597
    assert not graspnet.official("grasp_Syn", full)
    assert "2048, 1597" in refusal(lambda: graspnet.check(tmp_path, "grasp_Syn", full))
    (tmp_path / graspnet.FOLDER / "test/Synthetic").mkdir()
    with pytest.warns(UserWarning, match="test/Synthetic is not read"):
        assert graspnet.size(tmp_path, "grasp_Syn", "test") == 2
    (folder / "bad.xyz").write_text("1 2 x\n")
    assert "bad.xyz" in refusal(lambda: load_domain(tmp_path, "grasp_Kin"))


def test_every_data_set_has_the_same_names():
    """Those that datasets/__init__.py lists; keys begin with the prefix and belong to one data set."""
    values = ("NAME", "DOMAINS", "PREFIX", "SPLITS", "PER_POINT", "POINTS", "SCANS", "FRAMED")
    for dataset in data.SOURCES:
        assert all(hasattr(dataset, name) for name in values)
        assert all(callable(getattr(dataset, name)) for name in ("classes", "load", "size", "check", "official"))
        assert all(key.startswith(dataset.PREFIX) for key in dataset.DOMAINS)
        assert set(dataset.SCANS) <= set(dataset.DOMAINS)
    keys = [key for dataset in data.SOURCES for key in dataset.DOMAINS]
    assert len(keys) == len(set(keys)) and all(key in data.dataset_of(key).DOMAINS for key in keys)
