"""download.py: unpacking, refusing, checking, and what it says when there is no way to fetch the set."""

import io
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from fixtures import make_pointda

import data
import download
from common import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test reads or writes the repository's cache."""
    monkeypatch.setattr(data, "CACHE", tmp_path / "cache")


@pytest.fixture
def root(tmp_path):
    return make_pointda(tmp_path / "set", n_points=16)


def flip(path):
    blob = bytearray(path.read_bytes())
    blob[len(blob) // 2] ^= 1
    path.write_bytes(blob)


def pack(path, members):
    """A zip or tar of {name: bytes, or ("link", where)}."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, value in members.items():
                info = zipfile.ZipInfo(name)
                info.external_attr = (0o120777 if isinstance(value, tuple) else 0o100644) << 16
                archive.writestr(info, value[1] if isinstance(value, tuple) else value)
        return path
    with tarfile.open(path, "w:gz") as archive:
        for name, value in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(value, tuple):
                info.type, info.linkname = (
                    (tarfile.SYMTYPE if value[0] == "link" else tarfile.LNKTYPE),
                    value[1],
                )
                archive.addfile(info)
            else:
                info.size = len(value)
                archive.addfile(info, io.BytesIO(value))
    return path


def members_of(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", [".zip", ".tgz"])
@pytest.mark.parametrize("prefix", ["", "some/where/"])
def test_unpacking_gives_the_set(root, tmp_path, kind, prefix):
    """A zip or a tar, at any depth, with a Mac's shadow files, becomes DIR/PointDA_data and nothing else."""
    content = {prefix + name: value for name, value in members_of(root).items()}
    shadow = {f"__MACOSX/{name.replace('.npy', '')}/._x": b"no" for name in content}
    path = pack(tmp_path / f"a{kind}", shadow | content)
    (tmp_path / "new").mkdir()
    download.unpack(path, tmp_path / "new")
    assert members_of(tmp_path / "new") == members_of(root)


EVIL = {
    "../out.npy": b"x",
    "PointDA_data/../../out.npy": b"x",
    "/tmp/out-of-the-folder.npy": b"x",
    "PointDA_data/modelnet/x": ("link", "/etc"),
}


@pytest.mark.parametrize("kind", [".zip", ".tgz"])
@pytest.mark.parametrize("name", EVIL)
def test_unpacking_refuses_what_leads_outside(root, tmp_path, kind, name):
    """Absolute names, dots and links are refused by name before a single file is written."""
    path = pack(tmp_path / f"a{kind}", members_of(root) | {name: EVIL[name]})
    (tmp_path / "new").mkdir()
    with pytest.raises(UserError) as error:
        download.unpack(path, tmp_path / "new")
    assert name in str(error.value) and str(path) in str(error.value)
    assert not list((tmp_path / "new").iterdir()) and not Path(tmp_path, "out.npy").exists()


def test_unpacking_refuses_a_hard_link(root, tmp_path):
    """A tar's hard link is a link too."""
    path = pack(tmp_path / "a.tgz", members_of(root) | {"PointDA_data/modelnet/x": ("hard", "../../secret")})
    with pytest.raises(UserError, match="PointDA_data/modelnet/x"):
        download.unpack(path, tmp_path)


BAD_ARCHIVE = {
    "a page": lambda path: path.write_bytes(b"<html>quota exceeded</html>"),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "flipped": flip,
    "absent": Path.unlink,
}


@pytest.mark.parametrize(
    "kind, damage", [(k, d) for k in (".zip", ".tgz") for d in BAD_ARCHIVE if (k, d) != (".tgz", "flipped")]
)
def test_a_bad_archive_is_named_and_leaves_nothing(root, tmp_path, kind, damage):
    """A damaged archive says how to go on by hand, and no half-unpacked folder stays."""
    path = pack(tmp_path / f"a{kind}", members_of(root))
    BAD_ARCHIVE[damage](path)  # a tar's members have no checksum: a flipped bit shows on loading
    (tmp_path / "new").mkdir()
    with pytest.raises(UserError, match="--unpack") as error:
        download.unpack(path, tmp_path / "new")
    assert str(path) in str(error.value) and not list((tmp_path / "new").iterdir())


def test_an_archive_of_something_else_is_refused(tmp_path):
    """Without the three domains it is not the set."""
    path = pack(tmp_path / "a.zip", {"photos/cat.jpg": b"x", "modelnet/x": b"x"})
    (tmp_path / "new").mkdir()
    with pytest.raises(UserError, match="not PointDA-10"):
        download.unpack(path, tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())


def test_check_prints_counts_and_the_name(root, capsys, monkeypatch):
    """One line for each domain there is, the name of the set, and where PointSegDA comes from if absent."""
    for split in ("train", "val", "test"):
        folder = root / "PointSegDA" / "faust" / split
        folder.mkdir(parents=True)
        np.save(folder / "body.npy", np.column_stack([np.eye(3), [1, 2, 8]]))
    download.check(root)
    out = capsys.readouterr().out
    for line in (
        "modelnet: train 20 [2, 2",
        "scannet: train 20 [2, 2",
        "custom: set",
        "faust: train 1, val 1, test 1",
    ):
        assert line in out
    (root / "PointSegDA").rename(root / "x")
    monkeypatch.setattr(data, "OFFICIAL", {key: ((2,) * 10, (2,) * 10) for key in data.DOMAINS})
    download.check(root)
    out = capsys.readouterr().out
    assert "DefRec_and_PCM" in out and "PointDA-10" in out


def test_a_set_that_is_there_is_not_fetched_again(root, monkeypatch, capsys):
    """make data in a complete folder only checks it."""
    monkeypatch.setattr("sys.argv", ["download.py", str(root)])
    monkeypatch.setattr(download, "download", lambda root: pytest.fail("fetched again"))
    download.main()
    assert "train 20" in capsys.readouterr().out


def test_a_failed_download_says_how_to_go_on_by_hand(tmp_path, monkeypatch):
    """No gdown, no network or a small page: the address and the command to run by hand."""
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(UserError, match=f"(?s)requirements-extra.*{download.ARCHIVE}.*--unpack FILE"):
        download.download(tmp_path)
    page = lambda id, output, **_: Path(output).write_bytes(b"<html>") and output
    for fetch in (lambda **_: None, page, lambda **_: 1 / 0):
        monkeypatch.setitem(sys.modules, "gdown", type("gdown", (), {"download": staticmethod(fetch)}))
        with pytest.raises(UserError, match=f"{download.ARCHIVE}.*--unpack FILE"):
            download.download(tmp_path)
