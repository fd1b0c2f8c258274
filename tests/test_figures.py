"""Every figure command on a few of the built-in shapes, and the errors of its user."""

import csv
import json
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from matplotlib import image

import stage1_ssl
from engine import base
from eval import evaluate
from fixtures import command, refusal
from paper import __main__ as paper
from paper import COMMANDS, conflict, figures, finished, tables
from test_evidence import cubic
from test_paper import TINY, quick, serve, shapes  # noqa: F401 - fixtures


# ---------------------------------------------------------------- the commands
@pytest.fixture(scope="module")
def runs(shapes, tmp_path_factory):
    """Three finished runs of stage 1, evaluated: all, low, and low with another beta."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        serve(shapes, patch)
        for name, more in (("all", ["--select", "all"]), ("low", []), ("b", ["--beta", 0.3])):
            command(stage1_ssl.main, *TINY, "--ssl", "defrec", "--eval-every", 4, "--out", folder / name, *more)
            evaluate(folder / name)
    return folder


def drawn(out):
    """The picture opens and is not blank; csv has rows, json where they are from."""
    pixels = image.imread(f"{out}.png")
    assert pixels.ndim == 3 and pixels[..., :3].std() > 0.01
    with open(f"{out}.csv") as file:
        rows = list(csv.DictReader(file))
    record = json.loads(out.with_suffix(".json").read_text())
    assert rows and record["statistics"] and record["n"] > 0 and record["figure"] in out.name
    assert {"commit", "device", "seed", "data", "args"} <= record.keys() and "built-in shapes" in record["data"]
    return rows, record


@pytest.mark.parametrize(
    "what, more",
    [
        ("fig1", ["--ssl", "selfdist"]),
        ("persample", ["--ssl", "defrec", "--samples", 10, "--oracle-clouds", 16]),
        ("both", ["--ssl", "defrec", "--samples", 8, "--oracle-clouds", 16, "--scored", 8]),
        ("fig4", ["--ssl", "defrec", "--betas", 0.3, 1, "--every", 3]),
        ("fig6", ["--ssl", "selfdist"]),
        ("lesson", ["--ssl", "defrec", "--samples", 10, "--oracle-clouds", 16, "--eval-every", 4]),
    ],
)
def test_figures_that_train(what, more, tmp_path, capsys):
    """Each ends with a picture, numbers, and one line of statistics."""
    command(paper.main, what, *TINY, *more, "--out", tmp_path / what)
    rows, record = drawn(tmp_path / (f"{what}-persample" if what == "both" else what))
    said = capsys.readouterr().out.splitlines()
    assert said[-1].startswith("wrote ") and not said[-2].startswith("built-in")  # the statistics, the files
    if what == "persample":
        steps = {row["step"] for row in rows}
        assert len(rows) == 10 * len(steps) and set(conflict.PREDICTORS) < rows[0].keys()
        assert [m["n"] for m in record["statistics"]["moments"]] == [10] * len(steps)
        table = [line for line in (tmp_path / "persample.md").read_text().splitlines() if line.startswith("| ")]
        bars = {line.count("|") for line in table[-len(conflict.PREDICTORS) :]}
        assert bars == {len(steps) + 3}  # score, moments, mean
    if what == "fig4":
        assert set(record["statistics"]["mean_over_training"]) == {"0.3", "1"}


@pytest.mark.parametrize("what", ["fig3", "fig5", "fig7", "fig8", "anm"])
def test_figures_of_finished_runs(what, runs, tmp_path, capsys, monkeypatch):
    """The same from what runs have left."""
    monkeypatch.setattr(tables, "GATE", 0)
    numbers = tmp_path / "numbers.csv"
    x, y = cubic(0, 60)
    lines = "".join(f"{i},{a},{b},{a % 1}\n" for i, (a, b) in enumerate(zip(x, -y)))
    numbers.write_text(f"step,skewness_train,cos,cos_cls\n{lines}")
    (tmp_path / "numbers.json").write_text('{"data": "built-in shapes", "seed": 0, "args": {"task": "M_SC"}}')
    ckpt = runs / "low" / "stage1.pt"
    more = {
        "fig3": [runs / "all", runs / "low"],
        "fig5": ["--ckpt", ckpt],
        "fig7": ["--init", ckpt, "--steps", 2, "--gcn-iters", 1, "--samples", 9],
        "fig8": [runs / "low", runs / "b"],
        "anm": ["--csv", numbers],
    }[what]
    command(paper.main, what, *more, "--out", tmp_path / what)
    _, record = drawn(tmp_path / what)
    found = record["statistics"]
    if what == "anm":
        there, back = found["G_oracle"]["skewness -> conflict"], found["G_oracle"]["conflict -> skewness"]
        assert there["p"] > back["p"] and list(found["paper"].values()) == [0.16, 0.25]
        low, high = found["G_oracle"]["gap_interval"]
        assert low < found["G_oracle"]["gap"] < high < 0 and found["G_cls"]["gap"] > found["G_oracle"]["gap"]
    if what == "fig7":
        assert found["paper"] == 0.1 and 0 <= found["share_wrong"] <= 1
    if what == "fig8":
        assert set(found["beta"]) == {"0.3", "0.7"} and found["curves"]["0.3"]["step"] == [0, 4, 8]
    assert capsys.readouterr().out.splitlines()[-1].startswith("wrote ")


def test_measure_compares_both_modes(tmp_path, capsys):
    """Four pairs of scores at three moments of a run, in .md and .csv; it needs no self-supervised task."""
    command(paper.main, "measure", *TINY, "--ssl", "none", "--out", tmp_path / "m")
    with open(tmp_path / "m.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows[::4]] == ["0", "4", "7"]
    assert tuple(row["pair"] for row in rows[:4]) == figures.PAIRS
    assert all(-1 <= float(row["spearman"]) <= 1 and 0 <= float(row["overlap"]) <= 1 for row in rows)
    assert (tmp_path / "m.md").read_text() in capsys.readouterr().out


def test_agreement_of_scores():
    """A score agrees with itself wholly, with its negative not at all."""
    a = torch.arange(10.0)
    assert figures.agreement(a, a, 0.7) == (pytest.approx(1), 1.0)
    assert figures.agreement(a, -a, 0.3) == (pytest.approx(-1), 0.0)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_place_and_says_what_it_is(name, capsys, tmp_path, monkeypatch):
    """--help of each; without --out it writes to a file named after the command."""
    monkeypatch.chdir(tmp_path)
    function, flags, folder = COMMANDS[name]
    with pytest.raises(SystemExit) as stop:
        command(paper.main, name, "--help")
    text = capsys.readouterr().out
    assert stop.value.code == 0 and function.__doc__.splitlines()[0] in text and "path to write to" in text

    def where(args):
        """Where it would write."""
        return args.out

    monkeypatch.setitem(COMMANDS, name, (where, (), folder))
    command(paper.main, name)
    assert capsys.readouterr().out.strip() == f"{folder}/{name}" and (tmp_path / folder).is_dir()


def test_fig11_with_a_stand_in_for_tsne(runs, tmp_path, monkeypatch):
    """Features of both checkpoints reach t-SNE; without scikit-learn one line says what to install."""

    class First:
        def __init__(self, **flags):
            assert 0 < flags["perplexity"] <= 30

        def fit_transform(self, f):
            return f[:, :2]

    monkeypatch.setattr(finished, "tsne", lambda: First)
    ckpts = [runs / name / "stage1.pt" for name in ("all", "low")]
    command(paper.main, "fig11", "--ckpt", *ckpts, "--out", tmp_path / "fig11")
    rows, record = drawn(tmp_path / "fig11")
    assert len(rows) == 2 * record["n"] and len(record["statistics"]["neighbour_agreement"]) == 2


def test_neighbour_agreement_counts_neighbours():
    """Four of five have their class nearest."""
    f = torch.tensor([[0.0], [0.1], [5.0], [5.1], [5.3]])
    assert finished.neighbour_agreement(f, torch.tensor([0, 0, 1, 1, 2])) == pytest.approx(0.8)


# ---------------------------------------------------------------- errors of the user's
@pytest.mark.parametrize(
    "argv, text",
    [
        (["fig5", "--ckpt", "none/stage1.pt"], "no such checkpoint"),
        (["fig7", "--init", "none/stage1.pt"], "no such checkpoint"),
        (["fig11", "--ckpt", "a.pt", "b.pt"], "requirements-extra.txt"),
        (["fig3", "none"], "result.json"),
        (["anm", "--csv", "none.csv"], "make fig1"),
        (["anm", "--csv", __file__], "column"),
        (["fig1", *TINY, "--ssl", "none"], "--ssl none"),
        (["persample", "--task", "seg_F_A", "--data", "shapes", "--ssl", "defrec"], "seg_F_A"),
        (["fig4", *TINY, "--betas", "2"], "--betas"),
        (["fig1", *TINY, "--task", "S_S"], "S_S"),
        (["fig6", *TINY, "--ssl", "defrec+pcm"], "defrec+pcm"),
        (["lesson", *TINY, "--task", "seg_F_A"], "seg_F_A"),
        (["fig2"], "fig2"),
    ],
)
def test_errors_are_one_line_with_exit_2(argv, text, tmp_path, monkeypatch, capsys):
    """As a user sees them, in a folder of one's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)  # as where it is not installed
    with pytest.raises(SystemExit) as stop:
        base.cli(lambda: command(paper.main, *argv))
    message = capsys.readouterr().err
    assert stop.value.code == 2 and message.count("\n") == 1 and text in message


def test_fig7_takes_only_a_run_with_a_second_stage(runs, tmp_path):
    """Not one that segments, is not finished, or is an oracle."""
    start = torch.load(runs / "low" / "stage1.pt", weights_only=True)
    for task, missing in (("seg_F_A", "none"), ("M_SC", "last_student"), ("S_S", "none")):
        args = start["config"]["args"] | {"task": task}
        changed = {key: value for key, value in start.items() if key != missing}
        torch.save(changed | {"config": start["config"] | {"args": args}}, tmp_path / "stage1.pt")
        refusal(lambda: command(paper.main, "fig7", "--init", tmp_path / "stage1.pt", "--out", tmp_path / "fig7"))


def test_runs_that_do_not_belong_together_are_refused(runs, tmp_path):
    """Of other data, or differing in more than alpha and beta."""
    other = json.loads((runs / "low" / "result.json").read_text())
    (tmp_path / "result.json").write_text(json.dumps(other | {"task": "M_S"}))
    with pytest.raises(base.UserError, match="direction"):
        finished.results_of([runs / "low", tmp_path])
    flags = other["stage1"]["flags"]
    for more in ({"points": 65}, {"select": "random"}, {"measure": "eval"}, {"batch_size": 64}, {"score": "gini"}):
        (tmp_path / "result.json").write_text(json.dumps(other | {"stage1": other["stage1"] | {"flags": flags | more}}))
        with pytest.raises(base.UserError, match="more than"):
            finished.fig8(SimpleNamespace(runs=[runs / "low", tmp_path], beta=0.7))


def test_fig_8_counts_a_seed_once_and_no_untrained_run(runs, tmp_path, capsys):
    """Twice one setting and seed, or stage 2 from a stage 1 with another beta: refused. Below the gate: in no mean."""
    for name, source in (("low", 0.9), ("b", 0.79)):
        result = json.loads((runs / name / "result.json").read_text())
        result["stage1"]["curve"][-1]["source"] = source
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(json.dumps(result))
    look = lambda *names: command(paper.main, "fig8", *(tmp_path / n for n in names), "--out", tmp_path / "fig8")
    look("low", "b")
    _, record = drawn(tmp_path / "fig8")
    assert set(record["statistics"]["beta"]) == {"0.7"} and "in no mean: 1 of 2 runs" in capsys.readouterr().out
    shutil.copytree(tmp_path / "low", tmp_path / "again")
    assert "two runs" in refusal(lambda: look("low", "again"))
    low = json.loads((tmp_path / "low" / "result.json").read_text())
    low["stage2"] = low["stage1"]
    other = low | {"seed": 1, "stage1": low["stage1"] | {"flags": low["stage1"]["flags"] | {"beta": 0.3}}}
    for name, result in (("low", low), ("again", other)):
        (tmp_path / name / "result.json").write_text(json.dumps(result))
    assert "more than" in refusal(lambda: look("low", "again"))


def test_fig_3_says_who_was_not_trained(runs, tmp_path, capsys):
    """Eight steps do not pass the gate."""
    command(paper.main, "fig3", runs / "low", "--out", tmp_path / "fig3")
    assert "(not trained)" in capsys.readouterr().out


@pytest.mark.parametrize("where, value", [("args", "M_S"), ("data", "0" * 64)])
def test_fig11_takes_one_target_and_one_data_set(runs, tmp_path, monkeypatch, where, value):
    """Two maps coloured with the labels of one target: another target or other clouds are refused."""
    monkeypatch.setattr(finished, "tsne", lambda: None)
    other = torch.load(runs / "low" / "stage1.pt", weights_only=True)
    other["config"][where] |= {"task": value} if where == "args" else {"fingerprint": value}
    torch.save(other, tmp_path / "other.pt")
    argv = "fig11", "--ckpt", runs / "low" / "stage1.pt", tmp_path / "other.pt", "--out", tmp_path / "fig11"
    assert "one target" in refusal(lambda: command(paper.main, *argv))
