"""extras/verify.py and controls.py: a sound run and sound labels pass, each planted fault is named."""

import json
import shutil

import numpy as np
import pytest
import torch

import eval as evaluation
import stage1_ssl
import stage2_pseudo
from datasets import pointda
from extras import controls, verify
from fixtures import command, make_pointda, make_pointsegda, refusal

TINY = "--points 32 --batch-size 8 --steps 4 --eval-every 2 --device cpu".split()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Both stages on a tiny set, scored."""
    root, out = make_pointda(tmp_path_factory.mktemp("set")), tmp_path_factory.mktemp("runs") / "a"
    flags = "--task", "M_SC", "--data", root, "--backbone", "pointnet", "--ssl", "defrec", "--out", out, *TINY
    command(stage1_ssl.main, *flags)
    command(stage2_pseudo.main, "--init", out / "stage1.pt", "--gcn-iters", 2)
    evaluation.evaluate(out)
    return out


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "a")


def edited(path, change):
    """A json file, changed in place."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


# ---------------------------------------------------------------- numbers from weights
def test_a_sound_run_agrees(run, tmp_path, capsys):
    """Both stages, both moments, to the bit; the table is written and says from what each number came."""
    command(verify.main, "--run", run, "--out", tmp_path / "verify")
    text, said = (tmp_path / "verify.md").read_text(), capsys.readouterr().out
    assert "to the bit" in said and "NO" not in text and "stage 2, last, acc" in text and "stored predictions" in text


def raised(name, how):
    def change(folder):
        edited(folder / "result.json", lambda result: how(result[name]))

    return change


def other_predictions(folder):
    with np.load(folder / "preds1.npz") as old:
        kept = dict(old)
    kept["target"][-1] = (kept["target"][-1] + 1) % 10
    np.savez(folder / "preds1.npz", **kept)


def other_weights(folder):
    payload = torch.load(folder / "stage2.pt", weights_only=True)
    payload["student"]["classifier.8.bias"] += torch.arange(10.0)
    torch.save(payload, folder / "stage2.pt")


@pytest.mark.parametrize(
    "damage, said",
    [
        (raised("stage1", lambda stage: stage["last"].update(acc=0.99)), "stage 1, last, acc: 0.99"),
        (raised("stage2", lambda stage: stage["oracle"].update(acc=0.99)), "stage 2, oracle"),
        (raised("stage2", lambda stage: stage["confusion"][0].reverse()), "stage 2, confusion"),
        (other_predictions, "stage 1, last, target predictions that differ: 0 in the files, 20 recomputed"),
        (other_weights, "stage 2, source_val, source predictions that differ"),
        (lambda folder: edited(folder / "result.json", lambda result: result.update(n_test=7)), "n_test: 7"),
    ],
)
def test_what_disagrees_is_named(copy, damage, said):
    """A number, predictions or weights that are not the run's: exit code 2 with the first of them."""
    damage(copy)
    assert said in refusal(lambda: command(verify.main, "--run", copy))


def test_a_stored_prediction_may_have_lost_by_a_hair_only():
    """From another machine a near-tie is forgiven, to the tolerance; at home none is."""
    logits, stored = torch.tensor([[1.0, 1.0005, 0.0], [1.0, 2.0, 0.0]]), np.array([0, 0], np.uint8)
    assert verify.settled(logits, stored, 1e-3).tolist() == [0, 1] and verify.settled(logits, stored, 0).tolist() == [
        1,
        1,
    ]


def test_a_record_from_elsewhere_says_so(copy, capsys):
    """Another device or version is named, and the predictions are compared to the tolerance."""
    edited(copy / "config.json", lambda c: [c[k]["versions"].update(torch="1.0") for k in c])
    command(verify.main, "--run", copy)
    assert "torch" in (said := capsys.readouterr().out) and "1.0 in the record" in said and "within 0.001" in said


def test_bodies_are_verified_by_mean_iou(tmp_path, capsys):
    """Labels of points: predictions of every point, and each part's IoU."""
    root, out = make_pointsegda(tmp_path / "set", domains=("faust", "mit")), tmp_path / "a"
    command(stage1_ssl.main, "--task", "seg_F_M", "--data", root, "--ssl", "none", "--out", out, *TINY)
    evaluation.evaluate(out)
    command(verify.main, "--run", out)
    assert "stage 1, last, miou" in capsys.readouterr().out
    edited(out / "result.json", lambda result: result["stage1"]["last"]["part_iou"].update(foot=2.0))
    assert "stage 1, last, part_iou" in refusal(lambda: command(verify.main, "--run", out))


# ---------------------------------------------------------------- the run again
def test_the_same_run_again_is_the_same_bits(run, copy, capsys):
    """Both stages, tensors, predictions and log; one number of the log changed is found."""
    command(verify.main, "--run", run, "--again")
    said = capsys.readouterr().out
    assert "6 of 6 agree" in said and "| stage 2, tensors that differ | 0 | 0 |" in said and "may differ" not in said
    other_weights(copy), other_predictions(copy)
    rows = (copy / "log.jsonl").read_text().replace('"step": 3, "cls": 2', '"step": 3, "cls": 3')
    (copy / "log.jsonl").write_text(rows)
    differ = {row[0]: row[2] for n in (1, 2) for row in verify.compared(run, copy, n)}
    assert [
        differ[f"stage {n}, {kind} that differ"] for n in (1, 2) for kind in ("tensors", "arrays of predictions")
    ] == [0, 1, 1, 0]
    assert differ["stage 1, rows of the log that differ"] + differ["stage 2, rows of the log that differ"] > 0


# ---------------------------------------------------------------- controls
def confusion(right, C=10, n=20, spread=True):
    """Counts (C, C) with this share of each class right, the others spread over all classes, or in the next one."""
    matrix = np.zeros((C, C), int)
    for c in range(C):
        matrix[c, c] = round(right * n)
        for k in range(n - matrix[c, c]):
            matrix[c, (c + 1 + (k % (C - 1) if spread else 0)) % C] += 1
    return matrix


def test_shuffled_labels_that_teach_are_caught():
    """Chance and a trained run pass; labels that were not shuffled, or a run that learnt nothing, do not."""
    holds = lambda plain, other: [
        r["holds"] for r in controls.judge_shuffled(*({"source": m, "target": m} for m in (plain, other)))
    ]
    trained, chance = confusion(0.7), confusion(0.1)
    assert holds(trained, chance) == [True] * 4
    assert holds(trained, trained) == [False, True] * 2 and holds(chance, chance) == [True, False] * 2


def test_clouds_that_are_predicted_alike_are_worth_fewer():
    """Spread evenly they are worth all, class by class in one piece about as many as there are classes."""
    even, pieces = confusion(0.1), np.roll(20 * np.eye(10, dtype=int), 1, 1)
    assert controls.worth(even) == 200 and controls.worth(pieces) in (8, 9)
    assert controls.chance_bound(even) < 0.2 < controls.chance_bound(pieces)
    draws = np.random.default_rng(0).permuted(np.tile(np.arange(10), (20000, 1)), axis=1)
    hit = (even[np.arange(10), draws].sum(1) / 200).var(), (pieces[np.arange(10), draws].sum(1) / 200).var()
    assert hit[1] == pytest.approx(0.09 / 9, rel=0.1) and hit[0] < 1e-3


def test_a_permuted_label_order_is_caught():
    """The identity passes, also for a weak network; labels numbered in another order do not, and classes are named."""
    weak = confusion(0.3)
    assert controls.judge_order(weak, pointda.CLASSES)["holds"]
    everywhere = weak + 30 * (np.arange(10) == 8)  # most clouds are called sofas
    assert controls.judge_order(everywhere, pointda.CLASSES)["holds"]
    found = controls.judge_order(weak[:, np.roll(np.arange(10), 1)], pointda.CLASSES)
    assert not found["holds"] and "bathtub is taken for" in found["found"]


def test_labels_are_the_folders_names(tmp_path):
    """Each class folder's cloud is found under its own number; a loader with the names in another order is caught."""
    make_pointda(tmp_path, domains=("modelnet",))
    assert controls.judge_folders(tmp_path, "M")["found"] == "10 of 10 folders"

    def other_order(root, key, split, labels):
        points, y = pointda.load(root, key, split, labels)
        return points, 9 - y

    found = controls.judge_folders(tmp_path, "M", other_order)
    assert not found["holds"] and "bathtub: table" in found["found"]


def test_the_controls_run_and_refuse_what_they_cannot_judge(tmp_path):
    """Their smallest form: two steps teach nothing, which is said; the log has its count; bodies have no such names."""
    argv = "--steps", 2, "--data", make_pointda(tmp_path / "set"), "--out", tmp_path / "c"
    assert "labels as they are" in refusal(lambda: command(controls.main, *argv))
    text = (tmp_path / "c.md").read_text()
    assert "`flat` in 2 of 2 rows" in text and text.count("10 of 10 folders") == 2
    assert "--task" in refusal(lambda: command(controls.main, "--task", "seg_F_M"))
    assert not controls.judge_log([{"flat": 1}, {}])["holds"]
