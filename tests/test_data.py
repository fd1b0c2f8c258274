"""data.py: what is loaded, what is refused and how, names and fingerprints, the cache."""

import io
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from fixtures import make_pointda

import data
from common import UserError

N = 64


def cloud(n, seed=0):
    """An ellipsoid off the origin, (n, 3) float32."""
    points = np.random.default_rng(seed).normal(size=(n, 3))
    return (points / np.linalg.norm(points, axis=1, keepdims=True) * [1, 2, 3] + [2, 0, -1]).astype(
        np.float32
    )


def write_h5(path, points, label):
    """A file of the scannet domain; either array may be anything, or None to leave it out."""
    with h5py.File(path, "w") as file:
        for name, value in (("data", points), ("label", label)):
            if value is not None:
                file[name] = value


def make_pointsegda(root):
    """PointSegDA/ with 3, 1, 2 bodies in train, val, test of two domains, eight parts by height."""
    for name in ("faust", "adobe"):
        for split, count in (("train", 3), ("val", 1), ("test", 2)):
            folder = root / "PointSegDA" / name / split
            folder.mkdir(parents=True)
            for i in range(count):
                body = cloud(N, seed=i)
                part = 1 + body[:, 1].argsort().argsort() * 8 // N  # 1..8, equally many points each
                np.save(folder / f"{i:03d}.npy", np.column_stack([body, part]).astype(np.float32))
    return root


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test reads or writes the repository's cache."""
    monkeypatch.setattr(data, "CACHE", tmp_path / "cache")


@pytest.fixture
def root(tmp_path):
    return make_pointda(tmp_path / "set", n_points=N)


@pytest.fixture
def bodies(tmp_path):
    return make_pointsegda(tmp_path / "set")


def unit(points):
    points = np.asarray(points, np.float64)
    points = points - points.mean(-2, keepdims=True)
    return points / np.linalg.norm(points, axis=-1).max(-1)[..., None, None]


# ---------------------------------------------------------------- what is loaded
def test_tasks_split_into_domain_keys():
    """Each of the 6 + 12 directions gives its two domains; anything else is refused with the list."""
    assert {data.split_task(t) for t in data.TASKS} == {
        (a, b) for a in data.DOMAINS for b in data.DOMAINS if a != b
    }
    assert data.split_task("S_SC") == ("S", "SC") and data.split_task("seg_F_A") == ("seg_F", "seg_A")
    for wrong in ("M", "M_M", "SC_", "seg_F", "seg_F_X", "m_s", "M_S_SC", ""):
        with pytest.raises(UserError, match="M_SC"):
            data.split_task(wrong)


@pytest.mark.parametrize("key, name, turned", [("M", "modelnet", False), ("S", "shapenet", True)])
def test_frame_and_unit_sphere_of_models(root, key, name, turned):
    """ModelNet keeps its frame, ShapeNet becomes (x, -z, y) except its plants; mean 0 and largest norm 1."""
    domain = data.load_domain(root, key)
    for label, word in enumerate(data.CLASSES):
        raw = np.stack(
            [np.load(root / "PointDA_data" / name / word / "train" / f"{word}_{i}.npy") for i in range(2)]
        )
        if turned and word != "plant":
            raw = np.stack([raw[..., 0], -raw[..., 2], raw[..., 1]], -1)
        mine = domain.train[domain.train_labels == label]
        np.testing.assert_allclose(mine.numpy(), unit(raw), atol=1e-6)
    assert domain.train.dtype == torch.float32 and domain.train_labels.dtype == torch.int64


def test_frame_and_order_of_scans(root):
    """Scans become (x, -z, y), stay in the order of the file, and keep its labels."""
    with h5py.File(root / "PointDA_data/scannet/train_0.h5") as file:
        raw, label = file["data"][...], file["label"][...]
    domain = data.load_domain(root, "SC")
    np.testing.assert_allclose(
        domain.train.numpy(), unit(np.stack([raw[..., 0], -raw[..., 2], raw[..., 1]], -1)), atol=1e-6
    )
    assert domain.train_labels.tolist() == label.tolist()


@pytest.mark.parametrize("factor, shift", [(1, 1e6), (1e25, 0), (1e-25, 0)])
def test_a_cloud_in_odd_units_is_normalised(root, factor, shift):
    """Neither a far origin nor huge or tiny coordinates lose the cloud to rounding, overflow or underflow."""
    path = root / "PointDA_data/modelnet/bathtub/test/bathtub_0.npy"
    raw = cloud(N).astype(np.float64)
    np.save(path, raw * factor + shift)
    np.testing.assert_allclose(data.load_domain(root, "M").test[0].numpy(), unit(raw), atol=1e-6)


def test_clouds_of_other_sizes_are_resampled(root, monkeypatch):
    """A longer cloud gives distinct points, a shorter one repeats its own, and the cap holds."""
    folder = root / "PointDA_data/modelnet/bathtub/train"
    np.save(folder / "bathtub_0.npy", cloud(10 * N))
    np.save(folder / "bathtub_1.npy", cloud(5))
    monkeypatch.setattr(data, "MOST_POINTS", 2 * N)
    train = data.load_domain(root, "M").train
    assert train.shape == (20, 2 * N, 3)
    assert len(train[0].unique(dim=0)) == 2 * N and len(train[1].unique(dim=0)) <= 5
    assert torch.equal(train, data.load_domain(root, "M").train)


def test_only_the_domains_asked_for_are_read(root):
    """A broken shapenet does not matter to M and SC."""
    (root / "PointDA_data/shapenet").rename(root / "elsewhere")
    assert len(data.load_domain(root, "M").train) == len(data.load_domain(root, "SC").train) == 20


@pytest.mark.filterwarnings("ignore:scannet test has no")
def test_symlinks_hidden_files_and_other_label_arrays(root):
    """A linked class folder, hidden files, a second .h5, and labels [m, 1] or in float all load."""
    folder = root / "PointDA_data/modelnet/sofa"
    folder.rename(root / "sofa")
    folder.symlink_to(root / "sofa")
    (root / "sofa/train/._sofa_0.npy").write_bytes(b"\0\5\26\7")
    assert len(data.load_domain(root, "M").train) == 20
    for i, label in enumerate((np.array([[1], [9], [0]]), np.array([1.0, 9.0, 0.0]))):
        write_h5(root / f"PointDA_data/scannet/test_{i}.h5", XYZ[:3], label)
    domain = data.load_domain(root, "SC")
    assert domain.test.shape == (6, N, 3) and domain.test_labels.tolist() == [1, 9, 0, 1, 9, 0]


def test_bodies_are_loaded_as_they_are(bodies):
    """PointSegDA: no turn and no normalisation, labels 1..8 become 0..7, val is its own split."""
    domain = data.load_domain(bodies, "seg_F")
    raw = np.load(bodies / "PointSegDA/faust/val/000.npy")
    assert torch.equal(domain.val[0], torch.from_numpy(raw[:, :3]))
    assert torch.equal(domain.val_labels[0], torch.from_numpy(raw[:, 3]).long() - 1)
    assert (
        domain.train.shape == (3, N, 3)
        and domain.test_labels.shape == (2, N)
        and domain.train_labels.max() == 7
    )


def test_built_in_shapes_need_no_file(monkeypatch):
    """`shapes` gives unit-sphere clouds of shapes.make; without labels there are none."""
    import shapes

    made = np.random.default_rng(0).normal(size=(10, N, 3)).astype(np.float32)
    monkeypatch.setattr(shapes, "make", lambda key, split: (made, np.arange(10)))
    domain = data.load_domain("shapes", "M")
    np.testing.assert_allclose(domain.test.numpy(), unit(made), atol=1e-6)
    assert domain.test_labels.tolist() == list(range(10))
    assert data.load_domain("shapes", "M", labels=False).test_labels is None


def test_to_moves_every_tensor(bodies):
    """Domain.to carries all tensors and the key to the device."""
    domain = data.load_domain(bodies, "seg_A").to("meta")
    tensors = [v for v in vars(domain).values() if isinstance(v, torch.Tensor)]
    assert len(tensors) == 6 and all(t.is_meta for t in tensors) and domain.key == "seg_A"


# ---------------------------------------------------------------- refused, by name
def npy(value):
    def damage(path):
        with open(path, "wb") as file:  # np.save would add .npy to another name
            np.save(file, value, allow_pickle=True)

    return damage


def content(value):
    return lambda path: path.write_bytes(value)


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def with_value(value):
    points = np.ones((N, 3)) + np.arange(N)[:, None]
    points[3, 1] = value
    return npy(points)


def saved_zip(path):
    with open(path, "wb") as file:
        np.savez(file, np.ones((N, 3)))


def huge_header(path):
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f8", "fortran_order": False, "shape": (2**50, 3)})
    path.write_bytes(head.getvalue() + bytes(100))


BAD_NPY = {
    "truncated": cut,
    "empty": content(b""),
    "text": content(b"1 2 3\n4 5 6\n"),
    "a zip": saved_zip,
    "huge": huge_header,
    "long header": content(b"\x93NUMPY\x01\x00\xff\xff" + b"{" * 65535),
    "pickled": npy(np.array([{"x": 1}], dtype=object)),
    "strings": npy(np.full((N, 3), "a")),
    "complex": npy(np.ones((N, 3), complex)),
    "bool": npy(np.eye(3, dtype=bool)),
    "two columns": npy(np.ones((N, 2))),
    "flat": npy(np.ones(N)),
    "batch": npy(np.ones((2, N, 3))),
    "no points": npy(np.ones((0, 3))),
    "one point": npy(np.ones((1, 3))),
    "all equal": npy(np.full((N, 3), 0.1)),
    "equal in xyz": npy(np.column_stack([np.ones((N, 3)), np.arange(N)])),
    "NaN": with_value(np.nan),
    "Inf": with_value(-np.inf),
    "norm overflows": with_value(1e300),
}


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("damage", BAD_NPY.values(), ids=BAD_NPY)
def test_a_bad_npy_is_named(root, damage, labels):
    """Any file that is no cloud is refused in one line with its path, with and without labels."""
    path = root / "PointDA_data/modelnet/lamp/test/lamp_0.npy"
    damage(path)
    refused(path, root, "M", labels)


def refused(path, root, key, labels=True):
    with pytest.raises(UserError) as error:
        data.load_domain(root, key, labels=labels)
    assert str(path) in str(error.value) and "\n" not in str(error.value) and ";" in str(error.value)


XYZ, Y = np.random.default_rng(0).normal(size=(6, N, 3)), np.arange(6)
ONE_FLAT = np.where(np.arange(6)[:, None, None] == 4, 1.0, XYZ)
BAD_H5 = {
    "no data": (None, Y),
    "no label": (XYZ, None),
    "shorter": (XYZ, Y[:5]),
    "longer": (XYZ[:5], Y),
    "wide": (XYZ, np.ones((6, 2))),
    "flat data": (XYZ[0], np.zeros(N)),
    "empty": (XYZ[:0], Y[:0]),
    "two columns": (XYZ[..., :2], Y),
    "scalar": (1.0, Y),
    "NaN": (np.where(XYZ > 2, np.nan, XYZ), Y),
    "all equal": (ONE_FLAT, Y),
    "one point": (XYZ[:, :1], Y),
    "strings": (np.full((6, N, 3), b"a"), Y),
}
BAD_LABELS = {
    "10": Y + 5,
    "negative": Y - 1,
    "half": Y + 0.5,
    "nan": Y * np.nan,
    "strings": np.array([b"sofa"] * 6),
    "bool": Y > 2,
}


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("arrays", BAD_H5.values(), ids=BAD_H5)
def test_a_bad_h5_is_named(root, arrays, labels):
    """Missing or ill-fitting data and labels of a scan file are refused, with and without labels."""
    path = root / "PointDA_data/scannet/test_0.h5"
    write_h5(path, *arrays)
    refused(path, root, "SC", labels)


@pytest.mark.parametrize("label", BAD_LABELS.values(), ids=BAD_LABELS)
def test_label_values_matter_only_when_asked_for(root, label):
    """Labels other than whole numbers 0..9 are refused, but labels=False never looks at one."""
    path = root / "PointDA_data/scannet/test_0.h5"
    write_h5(path, XYZ, label)
    assert data.load_domain(root, "SC", labels=False).test.shape == (6, N, 3)
    refused(path, root, "SC")


def test_without_labels_no_label_is_read(root, monkeypatch):
    """labels=False reads `data` of a scan file and no element of `label`, with and without the cache."""
    read, names = h5py.Dataset.__getitem__, []
    monkeypatch.setattr(
        h5py.Dataset, "__getitem__", lambda self, *a: names.append(self.name) or read(self, *a)
    )
    for _ in range(2):
        domain = data.load_domain(root, "SC", labels=False)
        assert domain.train_labels is domain.test_labels is None and set(names) == {"/data"}
    data.load_domain(root, "SC")
    assert "/label" in names


@pytest.mark.parametrize(
    "damage", [cut, content(b""), content(b"\x89HDF\r\n\x1a\n" + bytes(500))], ids=["cut", "empty", "header"]
)
def test_a_corrupt_h5_is_named(root, damage):
    """A file that HDF5 cannot read is refused."""
    path = root / "PointDA_data/scannet/train_0.h5"
    damage(path)
    refused(path, root, "SC")


@pytest.mark.filterwarnings("ignore:invalid value")
def test_flipping_any_part_of_an_h5_never_ends_in_a_traceback(root):
    """Sixty files with a damaged stretch either load or are refused by name."""
    path = root / "PointDA_data/scannet/test_0.h5"
    whole, results = path.read_bytes(), []
    for at in np.linspace(0, len(whole) - 64, 60).astype(int):
        path.write_bytes(whole[:at] + b"\xff" * 64 + whole[at + 64 :])
        try:
            results.append(data.load_domain(root, "SC").test.isfinite().all().item())
        except UserError as error:
            assert str(path) in str(error)
            results.append(None)
    assert None in results and False not in results


@pytest.mark.parametrize(
    "key, gone",
    [
        ("M", ""),
        ("M", "PointDA_data/modelnet"),
        ("SC", "PointDA_data/scannet"),
        ("seg_F", "PointSegDA/faust"),
        ("seg_F", "PointSegDA/faust/val"),
        ("S", "PointDA_data/shapenet/plant"),
        ("M", "PointDA_data/modelnet/sofa/test"),
    ],
)
def test_a_missing_folder_is_named(root, bodies, key, gone):
    """The message for an absent folder names it and says where the set comes from."""
    (root / gone).rename(root.parent / "gone")
    with pytest.raises(UserError, match="DefRec" if key == "seg_F" else "make data") as error:
        data.load_domain(root, key)
    assert str(root / gone) in str(error.value)


@pytest.mark.parametrize(
    "key, pattern",
    [("M", "modelnet/bed/train/*.npy"), ("S", "shapenet/table/test/*.npy"), ("SC", "scannet/test_*.h5")],
)
def test_an_empty_folder_is_named(root, key, pattern):
    """A class folder or a split without a file is refused."""
    files = list((root / "PointDA_data").glob(pattern))
    for path in files:
        path.unlink()
    refused(files[0].parent, root, key)


PERSON = np.column_stack([XYZ[0], np.arange(N) % 8 + 1])
BAD_BODY = {
    "no label column": PERSON[:, :3],
    "fifth column": np.ones((N, 5)) * np.arange(N)[:, None],
    "short": PERSON[:20],
    "0": PERSON - [0, 0, 0, 1],
    "9": PERSON + [0, 0, 0, 1],
    "half": PERSON + [0, 0, 0, 0.5],
    "NaN label": PERSON * [1, 1, 1, np.nan],
    "NaN": PERSON * [1, np.nan, 1, 1],
    "all equal": PERSON * [0, 0, 0, 1],
    "too large": PERSON * [1e200, 1, 1, 1],
}


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("array", BAD_BODY.values(), ids=BAD_BODY)
@pytest.mark.parametrize("file", ["000.npy", "001.npy"])
def test_a_bad_body_is_named(bodies, array, file):
    """PointSegDA: a missing column, unequal sizes, labels outside 1..8 and bad points are refused by name."""
    path = bodies / "PointSegDA/faust/train" / file
    np.save(path, array)
    refused(path, bodies, "seg_F")


# ---------------------------------------------------------------- counts, names, fingerprint
def official(monkeypatch):
    monkeypatch.setattr(data, "OFFICIAL", {key: ((2,) * 10, (2,) * 10) for key in data.DOMAINS})


def test_official_totals_add_up():
    """The table of the set's classes gives the set's totals."""
    totals = {key: tuple(map(sum, splits)) for key, splits in data.OFFICIAL.items()}
    assert totals == {"M": (4183, 856), "S": (17378, 2492), "SC": (6110, 1769)}


def test_the_name_needs_every_count(root, monkeypatch):
    """PointDA-10 only if all counts are official; one cloud more makes it custom; labels are not needed."""
    custom = data.data_name(root, data.load_domain(root, "M"), data.load_domain(root, "S"))
    assert custom == "custom: set"
    official(monkeypatch)
    src, tgt = data.load_domain(root, "M"), data.load_domain(root, "SC", labels=False)
    assert data.data_name(root, src, tgt) == "PointDA-10"
    np.save(root / "PointDA_data/modelnet/bed/train/more.npy", XYZ[0])
    (root / "NAME").write_text("rooms of mine\nand more\n")
    assert data.data_name(root, data.load_domain(root, "M"), tgt) == "custom: rooms of mine"
    assert data.data_name("shapes", src, tgt) == "built-in shapes"


def test_segmentation_is_never_called_official(bodies):
    """PointSegDA has no table of counts to compare with."""
    assert (
        data.data_name(bodies, data.load_domain(bodies, "seg_F"), data.load_domain(bodies, "seg_A"))
        == "custom: set"
    )


@pytest.mark.parametrize("key, name", [("M", "modelnet"), ("SC", "scannet")])
def test_the_full_set_with_other_class_counts_is_damaged(root, monkeypatch, key, name):
    """As many clouds as the full set but not class by class: refused with labels, out of sight without."""
    official(monkeypatch)
    if key == "M":
        (root / "PointDA_data/modelnet/bed/train/bed_0.npy").rename(
            root / "PointDA_data/modelnet/sofa/train/x.npy"
        )
    else:
        with h5py.File(root / "PointDA_data/scannet/train_0.h5", "a") as file:
            file["label"][0] = (file["label"][0] + 1) % 10
    refused(root, root, key)
    assert len(data.load_domain(root, key, labels=False).train) == 20


def test_absent_classes_of_scans_are_warned_about(root):
    """A class without a scan is no error; the warning names it."""
    write_h5(root / "PointDA_data/scannet/test_0.h5", XYZ, np.array([0, 1, 2, 3, 4, 5]))
    with pytest.warns(UserWarning, match="scannet test has no monitor, plant, sofa, table"):
        domain = data.load_domain(root, "SC")
    assert domain.counts["test"] == {"total": 6, "per_class": [1] * 6 + [0] * 4}
    assert "\n" not in data.counts_text(
        domain
    ) and "test 6 [1, 1, 1, 1, 1, 1, 0, 0, 0, 0]" in data.counts_text(domain)
    assert data.load_domain(root, "SC", labels=False).counts["test"] == {"total": 6}


def test_points_and_their_fingerprint_do_not_depend_on_labels(root):
    """Permuting the labels inside an .h5 changes no point, order or fingerprint; moving a point does."""
    src, before = data.load_domain(root, "M"), data.load_domain(root, "SC")
    path = root / "PointDA_data/scannet/train_0.h5"
    with h5py.File(path, "a") as file:
        file["label"][...] = file["label"][...][::-1]
    after = data.load_domain(root, "SC", labels=False)
    assert torch.equal(before.train, after.train)
    prints = [data.fingerprint(src, before), data.fingerprint(src, after)]
    assert prints[0] == prints[1] and len(prints[0]) == 64
    assert data.fingerprint(before, src) != prints[0]
    for points in (before.train, before.test, src.train, src.test):
        points[3, 5, 1] += 1e-3
        prints.append(data.fingerprint(src, before))
    assert len(set(prints)) == 5


# ---------------------------------------------------------------- real clouds, where there are some
REAL = Path(data.__file__).resolve().parent.parent / "shared" / "data"


@pytest.mark.skipif(not REAL.is_dir(), reason="no real clouds beside the repository")
def test_real_clouds_load():
    """ModelNet-10 has its official counts, and the whole folder is not called PointDA-10."""
    src, tgt = data.load_domain(REAL, "M"), data.load_domain(REAL, "SC", labels=False)
    assert [c["per_class"] for c in src.counts.values()] == [list(n) for n in data.OFFICIAL["M"]]
    assert data.data_name(REAL, src, tgt).startswith("custom: ")
    norms = src.train.norm(dim=-1).amax(1)
    assert torch.allclose(norms, torch.ones_like(norms)) and src.train.mean(1).abs().max() < 1e-5
