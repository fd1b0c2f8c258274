"""datasets/download.py: unpacking, refusing, checking, and what it says when there is no way to fetch the set."""

import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from fixtures import make_pointsegda, refusal

from datasets import download, pointda
from engine.base import cli

KINDS = pytest.mark.parametrize("kind", [".zip", ".tar", ".tgz"])


def pack(path, members):
    """A zip or tar of {name: bytes, or ("link" or "hard", where)}."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, value in members.items():
                info = zipfile.ZipInfo(name)
                info.external_attr = (0o120777 if isinstance(value, tuple) else 0o100644) << 16
                archive.writestr(info, value[1] if isinstance(value, tuple) else value)
        return path
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as archive:
        for name, value in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(value, tuple):
                info.type = tarfile.SYMTYPE if value[0] == "link" else tarfile.LNKTYPE
                info.linkname = value[1]
                archive.addfile(info)
            else:
                info.size = len(value)
                archive.addfile(info, io.BytesIO(value))
    return path


def members_of(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def members(whole):
    """{name: bytes} of a tiny set."""
    return members_of(whole)


@pytest.fixture
def new(tmp_path):
    """An empty folder to unpack into."""
    (tmp_path / "new").mkdir()
    return tmp_path / "new"


# ---------------------------------------------------------------- unpacking
def test_a_zip_with_backslashes_is_taken(new, members):
    """As some programs on Windows write it, with entries for folders."""
    folders = {"set\\PointDA_data\\modelnet\\": b""}
    archive = pack(new.parent / "set.zip", folders | {f"set/{n}".replace("/", "\\"): b for n, b in members.items()})
    download.unpack(archive, new)
    assert members_of(new) == members


@KINDS
@pytest.mark.parametrize("prefix", ["", "some/where/"])
def test_unpacking_gives_the_set(members, tmp_path, new, kind, prefix):
    """At any depth, with a Mac's shadow files, it becomes DIR/PointDA_data and nothing else."""
    shadow = {f"__MACOSX/{prefix}{name}": b"no" for name in members}
    path = pack(tmp_path / f"a{kind}", shadow | {prefix + name: value for name, value in members.items()})
    download.unpack(path, new)
    assert members_of(new) == members and [p.name for p in new.iterdir()] == ["PointDA_data"]


def test_a_set_without_a_folder_of_its_own_unpacks_too(members, tmp_path, new):
    """modelnet/ at the top of the archive: anyone may then read DIR/PointDA_data."""
    path = pack(tmp_path / "a.zip", {name.removeprefix("PointDA_data/"): value for name, value in members.items()})
    download.unpack(path, new)
    assert members_of(new) == members
    assert (new / "PointDA_data").stat().st_mode == (new / "PointDA_data/modelnet").stat().st_mode


EVIL = {
    "../out.npy": b"x",
    "PointDA_data/../../out.npy": b"x",
    "/HERE/out.npy": b"x",  # /HERE stands for the folder of the test
    "..\\out.npy": b"x",
    "C:\\out.npy": b"x",
    "\\out.npy": b"x",
    "__MACOSX/../../out.npy": b"x",
    "PointDA_data/modelnet/x": ("link", "/etc"),
    "PointDA_data/modelnet/y": ("hard", "../../secret"),
}


@KINDS
@pytest.mark.parametrize("name", EVIL)
def test_unpacking_refuses_what_leads_outside(members, tmp_path, new, kind, name):
    """Absolute names, dots and links are refused by name before a single file is written."""
    content, name = EVIL[name], name.replace("/HERE", str(tmp_path))
    path = pack(tmp_path / f"a{kind}", members | {name: content})
    text = refusal(lambda: download.unpack(path, new))
    assert repr(name) in text and str(path) in text
    assert not list(new.iterdir()) and not (tmp_path / "out.npy").exists()


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    blob = bytearray(path.read_bytes())
    blob[len(blob) // 2] ^= 1
    path.write_bytes(blob)


def folder_instead(path):
    path.unlink()
    path.mkdir()


BAD_ARCHIVE = {
    "a page": lambda path: path.write_bytes(b"<html>quota exceeded</html>"),
    "empty": lambda path: path.write_bytes(b""),
    "cut": cut,
    "flipped": flip,
    "absent": Path.unlink,
    "a folder": folder_instead,
}


# the members of a tar have no checksum: a flipped bit shows on loading, or not at all
@pytest.mark.parametrize(
    "damage, kind", [(d, k) for d in BAD_ARCHIVE for k in (".zip", ".tgz")[: 1 + (d != "flipped")]]
)
def test_a_bad_archive_is_named_and_leaves_nothing(members, tmp_path, new, kind, damage):
    """A damaged archive says how to go on by hand, and no half-unpacked folder stays."""
    path = pack(tmp_path / f"a{kind}", members)
    BAD_ARCHIVE[damage](path)
    text = refusal(lambda: download.unpack(path, new))
    assert str(path) in text and f"python -m datasets.download {new} --unpack FILE" in text and not list(new.iterdir())


OTHERS = {
    "photos": {"photos/cat.jpg": b"x"},
    "one domain": {"PointDA_data/modelnet/x": b"x"},
    "files of these names": {"a/modelnet": b"x", "a/shapenet": b"x", "a/scannet": b"x"},
    "apart": {"a/modelnet/x": b"x", "b/shapenet/x": b"x", "b/scannet/x": b"x"},
    "a file that is a folder": {"a": b"x", "a/modelnet": b"x"},
    "nothing": {},
}


@pytest.mark.parametrize("members", OTHERS.values(), ids=OTHERS)
def test_an_archive_of_something_else_is_refused(tmp_path, new, members):
    """Without the three domains side by side it is not the set."""
    path = pack(tmp_path / "a.tgz", members)
    assert str(path) in refusal(lambda: download.unpack(path, new)) and not list(new.iterdir())


def test_a_set_that_is_there_is_never_overwritten(members, tmp_path, new, monkeypatch):
    """Neither by unpack nor by the command, not even an empty folder."""
    (new / "PointDA_data").mkdir()
    path = pack(tmp_path / "a.zip", members)
    monkeypatch.setattr("sys.argv", ["download.py", str(new), "--unpack", str(path)])
    for call in (lambda: download.unpack(path, new), download.main):
        assert f"{new / 'PointDA_data'} exists" in refusal(call)
    assert not members_of(new)


# ---------------------------------------------------------------- checking
def test_check_prints_counts_and_the_name(whole, capsys, monkeypatch):
    """One line for each domain, the name of the set, and where PointSegDA comes from."""
    download.check(whole)
    out = capsys.readouterr().out.splitlines()
    ones = f"train 10 {[1] * 10}, test 10 {[1] * 10}"
    assert out[:4] == [f"{name}: {ones}" for name in ("modelnet", "shapenet", "scannet")] + ["data name: custom: set"]
    assert "DefRec_and_PCM" in out[4]
    monkeypatch.setattr(pointda, "OFFICIAL", {key: ((1,) * 10, (1,) * 10) for key in pointda.DOMAINS})
    for key in (None, *pointda.DOMAINS):  # all official, then one that is not
        monkeypatch.setitem(pointda.OFFICIAL, key, ((2,) * 10, (1,) * 10))
        download.check(whole)
        assert ("data name: PointDA-10" in capsys.readouterr().out) == (key is None)
        monkeypatch.setitem(pointda.OFFICIAL, key, ((1,) * 10, (1,) * 10))


def test_check_prints_the_bodies_that_are_there(root, capsys):
    """PointSegDA domain by domain, beside PointDA-10."""
    make_pointsegda(root, per_split=1, domains=("faust", "scape"))
    download.check(root)
    out = capsys.readouterr().out
    assert "faust: train 1, val 1, test 1" in out and "scape: train 1" in out and "adobe" not in out


def test_check_names_a_bad_file(root):
    """A set that is not whole is refused by the file that is bad."""
    np.save(root / "PointDA_data/modelnet/chair/test/chair_0.npy", np.zeros(3))
    assert "chair/test/chair_0.npy" in refusal(lambda: download.check(root))


# ---------------------------------------------------------------- the command
def test_a_set_that_is_there_is_not_fetched_again(whole, monkeypatch, capsys):
    """`make data` in a complete folder only checks it, and so does --check."""
    monkeypatch.setattr(download, "download", lambda root: pytest.fail("fetched again"))
    for flags in ([], ["--check"]):
        monkeypatch.setattr("sys.argv", ["download.py", str(whole), *flags])
        download.main()
        assert "scannet: train 10" in capsys.readouterr().out


def test_bodies_alone_can_be_checked(tmp_path, monkeypatch, capsys):
    """--check of a folder that holds PointSegDA and no PointDA-10."""
    make_pointsegda(tmp_path, per_split=2, domains=("faust", "mit"))
    monkeypatch.setattr("sys.argv", ["download.py", str(tmp_path), "--check"])
    download.main()
    assert capsys.readouterr().out == "faust: train 2, val 2, test 2\nmit: train 2, val 2, test 2\n"


def test_the_command_unpacks_what_was_fetched(members, tmp_path, monkeypatch, capsys):
    """A new folder is made, the archive unpacked into it, its counts printed."""
    path = pack(tmp_path / "fetched.zip", members)
    monkeypatch.setattr(download, "download", lambda root: path)
    monkeypatch.setattr("sys.argv", ["download.py", str(tmp_path / "some/data")])
    download.main()
    assert members_of(tmp_path / "some/data") == members and "shapenet: train 10" in capsys.readouterr().out


def test_an_error_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys):
    """A folder that cannot be made, a set that is not there, a missing argument."""
    (tmp_path / "file").write_text("")
    for flags, says in (([tmp_path / "file/x"], "file/x"), ([tmp_path, "--check"], "modelnet"), ([], "root; see")):
        monkeypatch.setattr("sys.argv", ["download.py", *map(str, flags)])
        with pytest.raises(SystemExit) as end:
            cli(download.main)
        out, err = capsys.readouterr()
        assert end.value.code == 2 and out == "" and says in err
        assert err.startswith("error: ") and err.count("\n") == 1


def test_the_module_is_a_command():
    """python -m datasets.download, from the repository's root; a wrong flag names that command."""
    root = Path(download.__file__).parent.parent
    argv = [sys.executable, "-m", "datasets.download", "--chekc"]
    run = subprocess.run(argv, cwd=root, capture_output=True, text=True)
    assert run.returncode == 2 and run.stdout == "" and run.stderr.count("\n") == 1
    assert run.stderr.endswith("see python -m datasets.download --help\n")


# ---------------------------------------------------------------- no way to fetch it
def with_gdown(monkeypatch, fetch):
    monkeypatch.setitem(sys.modules, "gdown", type("gdown", (), {"download": staticmethod(fetch)}))


def by_hand(root):
    """The message of a failed download, which gives the address and the command to run by hand."""
    text = refusal(lambda: download.download(root))
    assert f"id={download.ARCHIVE}" in text and f"python -m datasets.download {root} --unpack FILE" in text
    return text


def test_without_gdown_the_requirements_are_named(tmp_path, monkeypatch):
    """Which file to install from."""
    monkeypatch.setitem(sys.modules, "gdown", None)  # import gdown then fails
    assert "pip install -r requirements-extra.txt" in by_hand(tmp_path)


def test_a_failing_download_says_why_in_one_line(tmp_path, monkeypatch):
    """An exception of several lines, or no file at all."""

    def fail(**_):
        raise RuntimeError("Cannot retrieve the link.\n\n\tToo many users have viewed the file.\n" + 1000 * "x")

    with_gdown(monkeypatch, fail)
    text = by_hand(tmp_path)
    assert "link. Too many users" in text and len(text) < 600
    with_gdown(monkeypatch, lambda **_: None)
    assert "nothing came" in by_hand(tmp_path)


def test_a_small_page_is_removed_and_the_archive_is_asked_for_by_id(tmp_path, monkeypatch):
    """A quota page does not stay to be taken for the archive; a large file does, inside the folder."""
    asked = []

    def fetch(id, output, size, **_):
        asked.append(id)
        with open(output, "wb") as file:
            file.truncate(size)  # a hole: no space is taken
        return output

    with_gdown(monkeypatch, lambda **kw: fetch(size=download.SMALLEST - 1, **kw))
    assert "too small" in by_hand(tmp_path) and not list(tmp_path.iterdir())
    with_gdown(monkeypatch, lambda **kw: fetch(size=download.SMALLEST, **kw))
    path = download.download(tmp_path)
    assert path.parent == tmp_path and path.stat().st_size == download.SMALLEST and asked == 2 * [download.ARCHIVE]
