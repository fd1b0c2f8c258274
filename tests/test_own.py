"""Own clouds: classes from folders, a target with or without labels, and no target label in what is trained."""

import csv
import shutil

import h5py
import numpy as np
import pytest
import torch

import data
import eval as evaluation
import stage1_ssl
import stage2_pseudo
from datasets import own
from datasets.files import turn_up
from engine import upright
from fixtures import blobs, command, refusal
from extras import my_cloud

TINY = "--backbone pointnet --ssl defrec --points 24 --batch-size 4 --steps 2 --device cpu".split()
NAMES = ("Zebra crossing", "arm chair", "Bench")


@pytest.fixture(autouse=True)
def afresh(tmp_path, monkeypatch):
    """No cache of another test's, everything said anew."""
    monkeypatch.setattr(own.files, "CACHE", tmp_path / "cache")
    own._said.clear()


def write(folder, names=NAMES, n=6, seed=0, end="npy"):
    """A folder with n clouds of each class, of 30 to 40 points."""
    rng = np.random.default_rng(seed)
    for c, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            points = blobs(rng, [c], 30 + int(rng.integers(10)))[0]
            path = folder / name / f"{i}.{end}"
            np.save(path, points) if end == "npy" else np.savetxt(path, points)
    return folder


def flat(folder, out):
    """The same clouds in one folder, as unlabelled."""
    out.mkdir()
    for file in folder.rglob("*.*"):
        shutil.copy(file, out / f"{file.parent.name}_{file.name}")
    return out


def weights(run):
    payload = torch.load(run / "stage2.pt", weights_only=True)
    return [*payload["student"].values(), *payload["last_student"].values(), *payload["task"].values()]


def both(source, target, out, *more):
    command(stage1_ssl.main, *TINY, "--source", source, "--target", target, "--out", out, *more)
    command(stage2_pseudo.main, "--init", out / "stage1.pt", "--gcn-iters", 1)
    return out


# ---------------------------------------------------------------- classes
def test_classes_are_the_sources_folders_whatever_their_case(tmp_path):
    """Sorted, names with spaces, hidden folders passed over; the same in any layout of the splits."""
    source = write(tmp_path / "a")
    (source / ".git").mkdir()
    root = (str(source), str(source))
    assert own.classes(root) == ("arm chair", "Bench", "Zebra crossing")
    src = data.load_domain(root, "own_source")
    assert src.classes == own.classes(root) and len(src.train) == 15 and len(src.test) == 3
    assert sorted(src.test_labels.tolist()) == [0, 1, 2]  # stratified
    for split, numbers in (("train", "0123"), ("test", "45")):
        for name in NAMES:
            (tmp_path / "b" / split / name).mkdir(parents=True)
            (tmp_path / "c" / name / split).mkdir(parents=True)
            for k in numbers:
                shutil.copy(source / name / f"{k}.npy", tmp_path / "b" / split / name)
                shutil.copy(source / name / f"{k}.npy", tmp_path / "c" / name / split)
    for layout in "bc":
        domain = data.load_domain((str(tmp_path / layout),) * 2, "own_source")
        assert domain.classes == own.classes(root) and (len(domain.train), len(domain.test)) == (12, 6)
    nested = tmp_path / "d" / "deeper"
    shutil.copytree(source, nested)
    assert own.classes((str(tmp_path / "d"),) * 2) == own.classes(root)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda s, t: shutil.rmtree(s / NAMES[0]) or shutil.rmtree(s / NAMES[1]), "1 class folder"),
        (lambda s, t: np.save(s / "loose.npy", np.ones((9, 3))), "lies in no class folder"),
        (lambda s, t: (s / "bench").mkdir() or np.save(s / "bench" / "x.npy", np.ones((9, 3))), "differ in case alone"),
        (lambda s, t: (t / "Bench").rename(t / "Stool"), "has Stool beside classes of the source"),
        (lambda s, t: (s / "Bench" / "bad.ply").write_text("no"), "bad.ply"),
        (lambda s, t: shutil.rmtree(t), "no such folder"),
        (lambda s, t: write(s, [f"c{i}" for i in range(254)], n=1), "257 class folders"),
        (lambda s, t: [p.unlink() for p in t.rglob("*.npy")], "no cloud in it"),
    ],
)
def test_refusals_name_what_was_found(change, said, tmp_path):
    """One line before anything is trained, with a remedy, and never that of PointDA-10."""
    source, target = write(tmp_path / "models"), write(tmp_path / "scans", seed=1)
    change(source, target)
    text = refusal(lambda: both(source, target, tmp_path / "run"))
    assert said in text and "PointDA" not in text and "make data" not in text
    assert not (tmp_path / "run" / "stage1.pt").exists()


def test_both_flags_or_none(tmp_path):
    assert "go together" in refusal(lambda: command(stage1_ssl.main, "--source", tmp_path))


def test_what_is_decided_is_said(tmp_path, capsys):
    """Another case matches; what is missing, small or odd is named once."""
    source, target = write(tmp_path / "models"), write(tmp_path / "scans", ("BENCH", "arm chair"), seed=1)
    np.save(target / "BENCH" / "0.npy", np.r_[blobs(np.random.default_rng(3), [0], 31)[0], [[np.nan] * 3]])
    root = (str(source), str(target))
    (target / "arm chair" / "scan.las").touch()
    data.load_domain(root, "own_source"), data.load_domain(root, "own_target")
    said = capsys.readouterr().err
    assert "passed over: 1 .las" in said and "1 points dropped" in said
    assert "has no Zebra crossing" in said and "NaN" in said and "fewer than" in said
    assert own.named(root) == {"BENCH": 1, "arm chair": 0}


# ---------------------------------------------------------------- the label wall
def test_no_target_label_reaches_a_tensor(tmp_path, capsys):
    """Labels right, permuted over the folders, and none: the same tensors of both stages; other clouds are others."""
    source, target = write(tmp_path / "models"), write(tmp_path / "scans", seed=1)
    permuted = tmp_path / "permuted"
    shutil.copytree(target, permuted)
    for a, b in zip(sorted(permuted.rglob("*.npy"))[::2], sorted(permuted.rglob("*.npy"))[7::2]):
        name = a.with_suffix(".tmp")
        a.rename(name), b.rename(a), name.rename(b)
    found = {kind: weights(both(source, folder, tmp_path / f"run {kind}")) for kind, folder in
             (("right", target), ("permuted", permuted), ("none", flat(target, tmp_path / "flat")))}  # fmt: skip
    for kind in ("permuted", "none"):
        assert all(torch.equal(a, b) for a, b in zip(found["right"], found[kind])), kind
    other = weights(both(source, write(tmp_path / "other", seed=2), tmp_path / "else"))
    assert not all(torch.equal(a, b) for a, b in zip(found["right"], other))
    accuracy = {kind: evaluation.evaluate(tmp_path / f"run {kind}") for kind in ("right", "permuted", "none")}
    assert accuracy["none"] is None and "nothing to score" in capsys.readouterr().out
    assert accuracy["right"]["n_test"] == accuracy["permuted"]["n_test"] == 4
    assert accuracy["right"]["data"]["name"] == "own clouds: models -> scans"


@pytest.mark.parametrize("labels", [None, [-1] * 9, [0] * 9, [0, 1, 2] * 3])
def test_an_h5_target(labels, tmp_path):
    """With labels, without, or with some that say nothing; the clouds are the same."""
    source, path = write(tmp_path / "models"), tmp_path / "scans.h5"
    with h5py.File(path, "w") as file:
        file["data"] = blobs(np.random.default_rng(0), [0, 1, 2] * 3, 40)
        if labels:
            file["label"] = np.array(labels)[:, None]
    domain = data.load_domain((str(source), str(path)), "own_target")
    assert len(domain.train) + len(domain.test) == 9 and len(domain.test) == 2
    known = bool(labels) and len(set(labels)) > 1
    assert (domain.test_labels is not None) == known
    if known:
        assert sorted(torch.cat([domain.train_labels, domain.test_labels]).tolist()) == sorted(labels)


def test_label_numbers_of_an_h5_are_checked(tmp_path):
    source, path = write(tmp_path / "models"), tmp_path / "scans.h5"
    with h5py.File(path, "w") as file:
        file["data"], file["label"] = blobs(np.random.default_rng(0), [0, 1, 2], 40), [1, 2, 3]
    assert "0..2" in refusal(lambda: data.load_domain((str(source), str(path)), "own_target"))


# ---------------------------------------------------------------- which way is up
def test_a_domain_on_its_side_is_noticed(monkeypatch):
    """Built-in models turned: y or x up is found from forty clouds, and nothing is said of those that stand."""
    M, S = (data.load_domain("shapes", key, labels=False).train[:, :256].numpy() for key in ("M", "S"))
    learnt, some = upright.learn(M), S[:40]
    turned = {"z": some, "y": np.stack([some[..., 0], some[..., 2], -some[..., 1]], -1), "x": some[..., [2, 0, 1]]}
    for axis, clouds in turned.items():
        assert upright.lies([upright.profiles(clouds)], learnt) == (None if axis == "z" else axis)
        assert np.allclose(turn_up(clouds, axis), some)
    assert upright.lies([upright.profiles(some[:1])], learnt) is None  # one cloud proves nothing
    with pytest.warns(UserWarning, match="give --up y"):
        upright.warn("these clouds", [upright.profiles(turned["y"])], learnt, "--up")
    monkeypatch.setattr(upright, "MOST_CLOUDS", 10), monkeypatch.setattr(upright, "MOST_POINTS", 100)
    assert np.array_equal(upright.profiles(some), upright.profiles(some[::4, ::3]))  # some of all, not the first


def test_the_targets_own_axis(tmp_path):
    """--target-up turns the target alone; a set that has its frame refuses it."""
    source, target = write(tmp_path / "models"), write(tmp_path / "scans", seed=1)
    root = (str(source), str(target))
    src, tgt = data.load_domain(root, "own_source"), data.load_domain(root, "own_target")
    a, b = data.framed(src, tgt, {"up": "z", "target_up": "y", "unit_sphere": False})
    assert torch.equal(a.train, src.train) and torch.equal(b.train, torch.from_numpy(turn_up(tgt.train.numpy())))
    assert "--up" in refusal(lambda: command(stage1_ssl.main, "--data", "shapes", "--target-up", "y"))


# ---------------------------------------------------------------- predictions
def test_predictions_of_many_files(tmp_path, capsys, monkeypatch):
    """A row for each file, the unreadable with the reason and exit code 2; no picture over another's."""
    source, target = write(tmp_path / "models"), write(tmp_path / "scans", seed=1)
    run = both(source, target, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    for name in ("kitchen", "office"):
        (tmp_path / "more" / name).mkdir(parents=True)
        shutil.copy(target / "Bench" / "0.npy", tmp_path / "more" / name / "scan.npy")
    np.savetxt("more/kitchen/scan.txt", np.load("more/kitchen/scan.npy"))
    (tmp_path / "more" / "broken.ply").write_text("ply")
    argv = "more", "scans/Bench/1.npy", "--ckpt", run / "stage2.pt", "--out", "seen", "--pictures"
    text = refusal(lambda: command(my_cloud.main, *argv))
    assert "1 of 5 clouds" in text
    with open("seen/predictions.csv") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    assert len(rows) == 5 and rows["more/broken.ply"]["class"] == "" and "broken.ply" in rows["more/broken.ply"]["note"]
    one, other = rows["more/kitchen/scan.npy"], rows["more/office/scan.npy"]
    assert one["class"] in NAMES and {k: one[k] for k in ("class", "confidence", "skewness")} == {
        k: other[k] for k in ("class", "confidence", "skewness")
    }
    assert 1 / 3 <= float(one["confidence"]) <= 1
    assert len(list((tmp_path / "seen").glob("*.png"))) == len(list((tmp_path / "seen").glob("*.ply"))) == 4
    looks = my_cloud.Looks(tmp_path, "", NAMES, False, False)
    names = [looks.name(path) for path in ("a/x.npy", "a/x.txt", "A/X.ply")]
    assert len({name.casefold() for name in names}) == 3
    capsys.readouterr()
    command(my_cloud.main, "scans/Bench/1.npy", "--ckpt", run / "stage2.pt")  # one cloud: as ever, where one stands
    assert "skewness" in capsys.readouterr().out and (tmp_path / "1-saliency.png").exists()


def test_an_h5_of_several_and_pages(tmp_path, monkeypatch):
    """A row for each cloud of an .h5; pages of all beside one table; a link out of the file is no cloud."""
    pytest.importorskip("plotly")
    source = write(tmp_path / "models")
    with h5py.File(tmp_path / "scans.h5", "w") as file:
        file["data"] = blobs(np.random.default_rng(0), [0, 1, 2], 40)
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["data"] = h5py.ExternalLink(str(tmp_path / "scans.h5"), "data")
    command(stage1_ssl.main, *TINY, "--source", source, "--target", tmp_path / "scans.h5", "--out", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    argv = "scans.h5", "link.h5", "--ckpt", "run/stage1.pt", "--out", "seen", "--html"
    assert "1 of 4 clouds" in refusal(lambda: command(my_cloud.main, *argv))
    with open("seen/predictions.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == ["scans.h5[0]", "scans.h5[1]", "scans.h5[2]", "link.h5"]
    pages = sorted(path.name for path in (tmp_path / "seen").glob("*.html"))
    assert len(pages) == 4 and "index.html" in pages
    table = (tmp_path / "seen" / "index.html").read_text()
    assert all(f'href="{name}"' in table for name in pages if name != "index.html")
    (tmp_path / "cut.h5").write_bytes((tmp_path / "scans.h5").read_bytes()[:900])
    text = refusal(lambda: data.load_domain((str(source), "cut.h5"), "own_target"))
    assert "cut.h5" in text and "another file" in text and "fetch" not in text
    assert "of its own" in refusal(lambda: data.load_domain((str(source), "link.h5"), "own_target"))
