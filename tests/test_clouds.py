"""The command of saliency.py: a cloud of one's own, from any file to a score, a picture and a coloured .ply."""

import io
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from fixtures import refusal
from matplotlib.figure import Figure
from matplotlib.image import imread

import models
import saliency
from datasets.clouds import read_cloud
from datasets.files import normalise
from datasets.formats import PLY_TYPES
from datasets.pointda import CLASSES
from engine import picture as clouds
from engine.base import UserError, cli
from engine.picture import write_ply
from engine.run import load_checkpoint, save_checkpoint
from extras import my_cloud

RAW = np.random.default_rng(0).normal(size=(60, 3)).round(3) * [1, 2, 3] + [5, 0, -1]
UNIT = RAW - RAW.mean(0)
UNIT /= np.linalg.norm(UNIT, axis=1).max()
LEVEL = np.arange(60) % 3


# ---------------------------------------------------------------- reading
def unit(path):
    """Points of a file as the command takes them, in the unit sphere, (n, 3) float32."""
    return normalise(torch.from_numpy(read_cloud(path).points)).float()


def npy(array):
    return lambda path: np.save(path, array)


def text(array, **kw):
    return lambda path: np.savetxt(path, array, **kw)


def ply(form, fields, before="", end="\n"):
    """A .ply with the fields in this order; what is not x, y or z counts up."""

    def write(path):
        columns = {name: RAW[:, "xyz".index(name)] if name in "xyz" else np.arange(60) for name, _ in fields}
        properties = [f"property {kind} {name}" for name, kind in fields]
        head = ["ply", f"format {form} 1.0", "comment made by hand", f"element vertex {len(RAW)}", *properties]
        head = end.join([*head, "element face 1", "property list uchar int vertex_indices", "end_header", ""])
        if form == "ascii":
            rows = [" ".join(map(str, row)) for row in zip(*columns.values())]
            path.write_bytes((head + end.join([*rows, "3 0 1 2", ""])).encode())
            return
        order = "<" if "little" in form else ">"
        vertex = np.zeros(len(RAW), [(name, order + PLY_TYPES[kind]) for name, kind in fields])
        for name, column in columns.items():
            vertex[name] = column
        path.write_bytes(head.encode() + vertex.tobytes() + b"\3" + np.arange(3, dtype=f"{order}i4").tobytes())

    return write


FLOATS = [("x", "float"), ("y", "float"), ("z", "float")]
MIXED = [("red", "uchar"), ("z", "float32"), ("nx", "double"), ("y", "double"), ("x", "float64"), ("id", "int")]
FILES = {
    "float32.npy": npy(RAW.astype(np.float32)),
    "float64-with-colour.npy": npy(np.column_stack([RAW, RAW])),
    "capital.NPY": lambda path: path.write_bytes(bytes_of(np.save, RAW)),
    "spaces.txt": text(RAW),
    "commas.txt": text(RAW, delimiter=","),
    "commas-and-spaces.txt": text(RAW, delimiter=", "),
    "comment.txt": text(RAW, header="x y z"),
    "tabs-with-normals.xyz": text(np.column_stack([RAW, RAW]), delimiter="\t"),
    "other.csv": text(RAW, delimiter=","),
    "ascii.ply": ply("ascii", FLOATS),
    "ascii-crlf.ply": ply("ascii", FLOATS, end="\r\n"),
    "ascii-mixed.ply": ply("ascii", MIXED),
    "little.ply": ply("binary_little_endian", FLOATS),
    "little-mixed.ply": ply("binary_little_endian", MIXED),
    "big-mixed.ply": ply("binary_big_endian", MIXED),
    "ours.ply": lambda path: write_ply(path, RAW, LEVEL),
}


def bytes_of(save, *arrays):
    buffer = io.BytesIO()
    save(buffer, *arrays)
    return buffer.getvalue()


@pytest.mark.parametrize("name", FILES)
def test_any_format_gives_the_same_cloud(tmp_path, name):
    """Columns x, y, z in the order of the file, in the unit sphere, float32."""
    FILES[name](tmp_path / name)
    points = unit(tmp_path / name)
    assert points.dtype == torch.float32 and points.shape == (60, 3)
    assert np.allclose(points, UNIT, atol=1e-5)


@pytest.mark.parametrize("name", ["map.npy", "map.txt", "map.ply"])
def test_map_coordinates_keep_their_detail(tmp_path, name):
    """A cloud of a few metres at 5,000 km from the origin is not rounded to half metres."""
    far = RAW + [5e6, 4e5, 0]
    if name == "map.ply":
        head = "ply\nformat ascii 1.0\nelement vertex 60\nproperty double x\nproperty double y\nproperty double z\n"
        rows = "\n".join(" ".join(map(repr, row)) for row in far.tolist())
        (tmp_path / name).write_text(f"{head}end_header\n{rows}\n")
    else:
        (npy if name == "map.npy" else text)(far)(tmp_path / name)
    assert np.allclose(unit(tmp_path / name), UNIT, atol=1e-5)


HEAD = b"ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
ROWS = b"0 0 0\n1 0 0\n0 1 1\n"
BAD = {
    "absent.npy": None,
    "folder.npy": "folder",
    "folder.txt": "folder",
    "empty.npy": b"",
    "cut.npy": bytes_of(np.save, RAW)[:-100],
    "header.npy": bytes_of(np.save, RAW).replace(b"}", b" ", 1),
    "half-zip.npy": b"PK\x03\x04 no zip",
    "objects.npy": pickle.dumps([1, 2, 3]),
    "flat.npy": bytes_of(np.save, RAW[:, 0]),
    "batch.npy": bytes_of(np.save, RAW.reshape(20, 3, 3)),
    "two-columns.npy": bytes_of(np.save, RAW[:, :2]),
    "words.npy": bytes_of(np.save, np.full((4, 3), "x")),
    "nan.npy": bytes_of(np.save, RAW * [1, np.nan, 1]),
    "inf.npy": bytes_of(np.save, RAW * [1, np.inf, 1]),
    "one-point.npy": bytes_of(np.save, RAW[:1]),
    "equal.npy": bytes_of(np.save, np.ones((9, 3))),
    "empty.txt": b"",
    "comment.txt": b"# nothing\n",
    "words.txt": b"x y z\n1 2 3\n",
    "ragged.txt": b"1 2 3\n4 5\n",
    "two.txt": b"1 2\n3 4\n",
    "one.xyz": b"1 2 3\n",
    "binary.xyz": bytes(range(256)),
    "empty.ply": b"",
    "rows-only.ply": ROWS,
    "no-format.ply": HEAD.replace(b"format ascii 1.0\n", b"") + ROWS,
    "no-end.ply": HEAD.replace(b"end_header\n", b"") + ROWS,
    "faces-first.ply": HEAD.replace(b"vertex", b"face") + ROWS,
    "no-z.ply": HEAD.replace(b"property float z\n", b"") + ROWS,
    "odd-type.ply": HEAD.replace(b"float z", b"quad z") + ROWS,
    "list.ply": HEAD.replace(b"float z", b"list uchar int z") + ROWS,
    "count.ply": HEAD.replace(b"vertex 3", b"vertex many") + ROWS,
    "cut-ascii.ply": HEAD + ROWS[:12],
    "cut-row.ply": HEAD + ROWS[:-4],
    "cut-binary.ply": HEAD.replace(b"ascii", b"binary_little_endian") + bytes(35),
    "equal.ply": HEAD + b"1 1 1\n" * 3,
}


@pytest.mark.filterwarnings("ignore:loadtxt")
@pytest.mark.parametrize("name", BAD)
def test_what_is_no_cloud_is_named(tmp_path, name):
    """One line with the file's name and a remedy, whatever is wrong."""
    if BAD[name] == "folder":
        (tmp_path / name).mkdir()
    elif BAD[name] is not None:
        (tmp_path / name).write_bytes(BAD[name])
    assert str(tmp_path / name) in refusal(lambda: read_cloud(tmp_path / name))


def test_a_ply_with_any_byte_changed_never_ends_in_a_traceback(tmp_path):
    """Each byte of the header in turn: a cloud of finite points or a refusal."""
    path, outcomes = tmp_path / "a.ply", set()
    for at in range(len(HEAD)):
        path.write_bytes(HEAD[:at] + b"\xff" + HEAD[at + 1 :] + ROWS)
        outcomes.add("refused" if refusal(lambda: read_cloud(path)) else "")
        path.write_bytes(HEAD[:at] + HEAD[at + 1 :] + ROWS)
        try:
            outcomes.add(bool(unit(path).isfinite().all()))
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)
    assert outcomes == {"refused", True}


# ---------------------------------------------------------------- writing and drawing
def test_write_ply_colours_by_level(tmp_path):
    """What is in the file are the points and the colour of each one's level, which are returned too."""
    colours = write_ply(tmp_path / "a.ply", torch.from_numpy(UNIT).float(), LEVEL)
    assert colours.dtype == np.uint8 and np.array_equal(colours, clouds.LEVELS[LEVEL])
    head, _, body = (tmp_path / "a.ply").read_bytes().partition(b"end_header\n")
    assert b"element vertex 60" in head and b"property uchar blue" in head
    vertex = np.frombuffer(body, [("p", "<f4", 3), ("c", "u1", 3)])
    assert np.array_equal(vertex["p"], UNIT.astype(np.float32)) and np.array_equal(vertex["c"], colours)
    assert len(np.unique(clouds.LEVELS, axis=0)) == 3
    assert "nowhere" in refusal(lambda: write_ply(tmp_path / "nowhere/a.ply", UNIT, LEVEL))


def shows(picture, colour):
    """How many pixels of a picture (H, W, 4) have the colour."""
    return (np.abs(picture[..., :3] * 255 - colour).max(-1) < 2).sum()


def test_draw_shows_every_colour(tmp_path):
    """A picture in the three colours on white, and one colour alone where there is one level."""
    for levels in ([0, 1, 2], [1]):
        colours = clouds.LEVELS[np.resize(levels, 60)]
        clouds.draw(tmp_path / "a.png", UNIT, colours, "a title")
        picture = imread(tmp_path / "a.png")
        assert picture[0, 0, :3].tolist() == [1, 1, 1]
        assert [bool(shows(picture, colour) > 10) for colour in clouds.LEVELS] == [k in levels for k in range(3)]


def test_scatter_keeps_z_up_and_the_axes_equal():
    """The three axes have one range, and no frame is drawn."""
    axes = Figure().add_subplot(projection="3d")
    clouds.scatter(axes, UNIT, clouds.LEVELS[LEVEL] / 255, "name")
    assert axes.get_xlim() == axes.get_ylim() == axes.get_zlim() and axes.get_title() == "name"
    assert axes.elev > 0 and not axes.axison


# ---------------------------------------------------------------- python saliency.py
def save_model(path, backbone="pointnet", task="M_S", alpha=1.0, drop=0):
    torch.manual_seed(0)
    weights = dict(list(models.build(backbone, len(CLASSES)).state_dict().items())[drop:])
    args = {"task": task, "backbone": "pointnet", "alpha": alpha, "points": 1024, "up": "z"}
    config = {"args": args, "classes": list(CLASSES), "data": {}}
    save_checkpoint(path, {"config": config, "student": weights, "last_student": weights})
    return path


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("run") / "stage1.pt")


def command(*argv, cwd):
    """saliency.py as a process of its own."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    argv = [sys.executable, saliency.__file__, *map(str, argv)]
    return subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True)


def in_process(monkeypatch, capsys, *argv):
    """(exit code, stdout, stderr) of the same command in this process."""
    monkeypatch.setattr("sys.argv", ["saliency.py", *map(str, argv)])
    try:
        cli(my_cloud.main)
        code = 0
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()


def oracle(ckpt, label=None, alpha=1.0):
    """Title's content by measure() in eval mode, which makes a pass of its own."""
    model = models.model_of(load_checkpoint(ckpt)).eval()
    x = torch.from_numpy(UNIT).float()[None]
    share, predicted = model(x).softmax(-1)[0].max(-1)
    of = CLASSES[predicted] if label is None else label
    score = saliency.measure(model, x, torch.tensor([CLASSES.index(of)]), alpha=alpha, mode="eval").item()
    return f"{CLASSES[predicted]} ({share:.0%}), saliency for {of}: skewness {score:+.3f}"


def test_the_command_scores_draws_and_colours_a_cloud(ckpt, tmp_path):
    """Class, confidence and skewness of measure(); a picture and a .ply where one stands, nothing else."""
    text(RAW)(tmp_path / "my chair.xyz")
    run = command("my chair.xyz", "--ckpt", ckpt, cwd=tmp_path)
    assert run.returncode == 0 and run.stderr == ""
    assert run.stdout.splitlines()[0] == f"my chair.xyz: {oracle(ckpt)}"
    assert {path.name for path in tmp_path.iterdir()} == {
        "my chair.xyz",
        "my chair-saliency.png",
        "my chair-saliency.ply",
    }
    picture = imread(tmp_path / "my chair-saliency.png")
    assert min(shows(picture, colour) for colour in (clouds.LEVELS[0], [255] * 3)) > 10
    assert np.allclose(unit(tmp_path / "my chair-saliency.ply"), UNIT, atol=1e-5)


def test_the_command_says_what_was_decided_about_a_file(ckpt, tmp_path):
    """A line on stderr for each, with the file's name: the columns of a table without a header, points dropped."""
    rows = np.column_stack([RAW, RAW])
    rows[3, 1] = np.nan
    text(rows)(tmp_path / "a.txt")
    run = command("a.txt", "--ckpt", ckpt, cwd=tmp_path)
    assert run.returncode == 0 and "skewness" in run.stdout
    columns, dropped = run.stderr.splitlines()
    assert columns.startswith("warning: a.txt: ") and columns.endswith("1, 2, 3 of 6")
    assert dropped.startswith("warning: a.txt: ") and dropped.endswith("1 of 60")


def test_garbage_for_a_checkpoint_is_one_line_and_exit_code_2(tmp_path):
    """As a process: no traceback, no file left."""
    text(RAW)(tmp_path / "a.txt")
    (tmp_path / "stage1.pt").write_bytes(bytes(range(256)) * 10)
    run = command("a.txt", "--ckpt", "stage1.pt", cwd=tmp_path)
    assert run.returncode == 2 and run.stdout == "" and run.stderr.count("\n") == 1
    assert run.stderr.startswith("error: stage1.pt: not a checkpoint") and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("label", ["bathtub", "table"])
def test_label_says_whose_loss_is_explained(ckpt, tmp_path, monkeypatch, capsys, label):
    """The class of --label in place of the predicted one; the .ply has the levels of its map."""
    monkeypatch.chdir(tmp_path)
    npy(RAW)(tmp_path / "a.npy")
    code, out, _ = in_process(monkeypatch, capsys, "a.npy", "--ckpt", ckpt, "--label", label)
    assert code == 0 and out.splitlines()[0] == f"a.npy: {oracle(ckpt, label)}"
    model = models.model_of(load_checkpoint(ckpt)).eval()
    x = unit(tmp_path / "a.npy")[None].requires_grad_()
    loss = -model(x).log_softmax(-1)[0, CLASSES.index(label)]
    S = saliency.saliency_map(x, *torch.autograd.grad(loss, x))[0].detach().numpy()
    level = np.digitize(S, [S.min() + (S.max() - S.min()) * k / 3 for k in (1, 2)])
    body = (tmp_path / "a-saliency.ply").read_bytes().partition(b"end_header\n")[2]
    found = np.frombuffer(body, [("p", "<f4", 3), ("c", "u1", 3)])["c"]
    assert np.array_equal(found, clouds.LEVELS[level])


def test_alpha_comes_from_the_checkpoint(tmp_path, monkeypatch, capsys):
    """The exponent that the run was trained with."""
    monkeypatch.chdir(tmp_path)
    npy(RAW)(tmp_path / "a.npy")
    path = save_model(tmp_path / "c.pt", alpha=6.0)
    _, out, _ = in_process(monkeypatch, capsys, "a.npy", "--ckpt", path)
    assert oracle(path, alpha=6.0) in out and oracle(path, alpha=6.0) != oracle(path, alpha=1.0)


BAD_CKPT = {
    "absent": lambda path: None,
    "a folder": lambda path: path.mkdir(),
    "empty": lambda path: path.write_bytes(b""),
    "a pickle": lambda path: path.write_bytes(pickle.dumps({"config": 1})),
    "a pickled object": lambda path: torch.save({"config": Figure()}, path),
    "a tensor": lambda path: torch.save(torch.zeros(3), path),
    "weights alone": lambda path: torch.save({"a": torch.zeros(3)}, path),
    "half": lambda path: path.write_bytes(save_model(path).read_bytes()[:100_000]),
    "another backbone": lambda path: save_model(path, "dgcnn"),
    "a weight short": lambda path: save_model(path, drop=1),
    "a segmenter": lambda path: save_model(path, task="seg_F_A"),
}


@pytest.mark.parametrize("make", BAD_CKPT.values(), ids=BAD_CKPT)
def test_a_bad_checkpoint_is_one_line(tmp_path, monkeypatch, capsys, recwarn, make):
    """Exit code 2, nothing on stdout, no warning of torch's beside the line, no picture."""
    monkeypatch.chdir(tmp_path)
    npy(RAW)(tmp_path / "a.npy")
    make(tmp_path / "stage1.pt")
    code, out, err = in_process(monkeypatch, capsys, "a.npy", "--ckpt", "stage1.pt")
    assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1 and "; " in err
    assert ("stage1.pt" in err or "--ckpt" in err) and not recwarn.list and not list(tmp_path.glob("a-*"))


def test_wrong_flags_are_one_line(ckpt, tmp_path, monkeypatch, capsys):
    """No checkpoint, an unknown class, a cloud that is not there."""
    monkeypatch.chdir(tmp_path)
    for flags, says in (
        (["a.npy"], "--ckpt"),
        (["a.npy", "--ckpt", ckpt, "--label", "dog"], "bathtub"),
        (["a.npy", "--ckpt", ckpt], "a.npy: no such file"),
    ):
        code, out, err = in_process(monkeypatch, capsys, *flags)
        assert code == 2 and out == "" and says in err and err.count("\n") == 1
