"""Tables from made-up results: who lands in which cell, and that a cell nobody ran is empty."""

import json

import pytest

import data
import eval as evaluation
from engine.base import UserError
from fixtures import command, refusal
from paper import __main__ as paper
from paper import published, tables


def result(task="M_S", ssl="selfdist", select="low", seed=0, acc=0.5, stage=2, **more):
    """A result.json as far as the tables read it."""
    way = data.direction(task)
    flags = dict.fromkeys(evaluation.FLAGS) | dict(task=task, ssl=ssl, select=select, seed=seed, score="skewness")
    flags |= dict(backbone="dgcnn-seg" if way.per_point else "dgcnn", beta=0.7, alpha=1.0, mtl="sum", batch_size=64)
    flags |= dict(scratch=False, gcn_iters=0 if way.per_point else 1000, perturb=[0.1, 0.05], steps=10, points=64)
    flags |= dict(measure="train" if select in ("low", "high") else None, eval_every=100) | more
    scores = {key: acc for key in evaluation.metrics_of(way.per_point)}
    part = {column: scores | {"step": 10} for column in evaluation.COLUMNS}
    part |= {"flags": flags, "seconds": 60, "curve": [{"step": 10, "source": 0.85, "target": acc}]}
    whole = {key: flags[key] for key in ("task", "backbone", "ssl", "steps", "points")} | {"per_point": way.per_point}
    whole |= {"data": {"name": "built-in shapes", "fingerprint": "f" * 64, "counts": {}}, "n_test": 7}
    whole |= {"device": "CPU", "commit": "abc", "versions": {"torch": "2"}, "seconds": 120}
    return whole | {"stage1": part, "stage2": part if stage == 2 else None}


def paper_cells(name, runs):
    """(method, line) -> cells of the row; the method's name stands in its first row only."""
    rows, method = {}, ""
    for line in published.paper_table(published.TABLES[name], runs).splitlines():
        if line.startswith("| ") and not line.startswith("| method"):
            first, kind, *values = (cell.strip() for cell in line.strip("|").split("|"))
            method = first or method
            rows[method, kind] = values
    return rows


# ---------------------------------------------------------------- Tables I, II, III
def test_table_1_pools_seeds_beside_the_papers_number():
    """Self-dist + SM-DSB on M→S: 83.6 in the paper, 55.0 ± 7.1 over two seeds; all other cells are empty."""
    runs = [result(seed=0, acc=0.5), result(seed=1, acc=0.6)]
    found = paper_cells("table1", runs)
    name = "Self-dist GCN + SM-DSB, stage 2"
    assert found[name, "paper"] == ["83.6", "63.0", "84.9", "59.5", "90.5", "81.7", "77.2"]
    for line in ("last", "**source val**", "label-free", "oracle (a leak)"):
        assert found[name, line] == ["55.0 ± 7.1 (2)", "", "", "", "", "", ""]
    assert found["PointDAN", "paper"][0] == "83.9" and ("PointDAN", "last") not in found
    assert found["", "n, test clouds"] == ["7", "", "", "", "", "", ""]
    text = published.paper_table(published.TABLES["table1"], runs)
    assert "built-in shapes" in text and "Not PointDA-10" in text


def test_table_2_is_mean_iou_with_the_averages_of_the_rows():
    """57.1 and 58.2 where the paper prints 58.1 and 67.2; steps follow the source."""
    seg = dict(task="seg_F_A", ssl="defrec+pcm", stage=1, acc=0.25)
    runs = [result(**seg), result(**seg | {"task": "seg_M_F", "steps": 20})]
    found, which = paper_cells("table2", runs), published.TABLES["table2"]
    assert found["DefRec", "paper"][-1] == "57.1" and found["DefRec + SM-DSB, stage 1", "paper"][-1] == "58.2"
    row = dict(zip(which.directions, found["DefRec + SM-DSB, stage 1", "last"]))
    assert row["seg_F_A"] == row["seg_M_F"] == "25.0 (1)" and list(row.values()).count("") == 10
    text = published.paper_table(which, runs)
    assert "mean IoU" in text and "67.2" in text and "accuracy" not in text


def test_one_oracle_serves_every_column_of_its_target():
    """seg_A_A stands in F→A, M→A and S→A beside the paper's oracle; S_S in two of Table I, which prints none."""
    found = paper_cells("table2", [result("seg_A_A", "none", "all", acc=0.25, stage=1)])
    columns = published.TABLES["table2"].directions
    row, printed, n = (found["Oracle", "last"], found["Oracle", "paper"], found["", "n, test clouds"])
    row, printed, n = (dict(zip(columns, cells)) for cells in (row, printed, n))
    own = [name for name in columns if name.endswith("_A")]
    assert len(own) == 3 and {name for name in columns if row[name]} == {name for name in columns if n[name]} == {*own}
    assert {row[name] for name in own} == {"25.0 (1)"} and {printed[name] for name in own} == {"80.9"}
    plain = dict(ssl="none", select="all", stage=1)
    found = paper_cells("table1", [result("S_S", **plain), result("M_S", acc=0.1, **plain)])
    assert found["Oracle", "last"] == ["50.0 (1)", "", "", "", "", "50.0 (1)", ""] and ("Oracle", "paper") not in found
    assert found["No Adaptation", "last"][0] == "10.0 (1)"


def test_bodies_in_two_frames_do_not_meet_in_a_cell():
    """With and without --unit-sphere: refused in Table II, rows of two names in an ordinary table."""
    seg = dict(task="seg_F_A", ssl="defrec", stage=1)
    raw, unit = runs = [result(**seg), result(**seg, seed=1, unit_sphere=True)]
    which = published.TABLES["table2"]
    assert "differ" in refusal(lambda: published.paper_table(which, runs))
    assert published.paper_table(which, [raw]) and published.paper_table(which, [unit])
    names = [line.split(" | ")[0] for line in tables.side_by_side(tables.flat(runs)).splitlines()]
    assert "| seg_F_A dgcnn-seg defrec low 0.7" in names and "| seg_F_A dgcnn-seg defrec low 0.7 (unit sphere)" in names


def test_controls_have_rows_of_their_own():
    """random, gradient surgery, another score and no adaptation do not mix with the methods of the paper."""
    runs = [result(select="random"), result(select="all", mtl="pcgrad", acc=0.1), result(score="gini", acc=0.2)]
    found = paper_cells("table1", [*runs, result(ssl="none", select="all", stage=1)])
    assert found["selfdist random 0.7, stage 2", "last"][0] == "50.0 (1)"
    assert found["selfdist all pcgrad, stage 2", "last"][0] == "10.0 (1)"
    assert found["selfdist low 0.7 by gini, stage 2", "last"][0] == "20.0 (1)"
    assert found["No Adaptation", "paper"][0] == "83.3" and found["No Adaptation", "last"][0] == "50.0 (1)"


def test_table_3_quotes_only_what_the_text_quotes():
    """DefRec+PCM on M→S*, 47.1 without and 49.2 with SM-DSB (beta .7), nothing else."""
    low = dict(backbone="pointnet", ssl="defrec+pcm", task="M_SC", stage=1)
    found = paper_cells("table3", [result(**low), result(**low | {"select": "all"})])
    assert found["DefRec+PCM + SM-DSB, stage 1", "paper"] == ["", "49.2", "", "", "", "", ""]
    assert found["DefRec+PCM, stage 1", "paper"] == ["", "47.1", "", "", "", "", ""]
    papers = [v for (_, kind), values in found.items() if kind == "paper" for v in values if v]
    assert sorted(papers) == ["47.1", "49.2"]


def test_a_table_of_nothing_has_the_papers_numbers_and_no_others():
    """No run: every line is the paper's."""
    found = paper_cells("table1", [])
    assert {kind for _, kind in found} == {"paper", "its log", "n, test clouds"} and len(found) == 11 + 2
    assert found["PCFEA, last epoch", "its log"] == ["85.03", "55.12", "87.15", "56.59", "85.05", "82.34", "75.2"]
    assert found["PCFEA, best epoch by target test labels", "its log"][:2] == ["87.44", "58.45"]


def test_methods_by_the_papers_names():
    """M_S with Self-dist GCN + SM-DSB is printed as 83.6; controls have no name in the paper."""
    flags = result()["stage2"]["flags"]
    printed = lambda **more: published.reported().get((published.method_of(flags | more), "dgcnn", "M_S"))
    assert printed() == "83.6" and printed(select="all") == "83.9" and printed(ssl="none") == "83.3"
    assert printed(ssl="defrec+pcm", select="all") == "81.7" and printed(ssl="defrec", select="all") is None
    assert published.method_of(flags | {"ssl": "mlsp+pcm"}) == "MLSP + SM-DSB"
    for more in ({"select": "random"}, {"beta": 0.3}, {"alpha": 6}, {"mtl": "cgdm"}, {"gcn_iters": 0}, {"task": "S_S"},
                 {"measure": "eval"}, {"scratch": True}, {"gcn_iters": 20}, {"perturb": [0, 0]}, {"score": "gini"},
                 {"filter_stream": True}, {"ssl": "mlsp"}):  # fmt: skip
        assert published.method_of(flags | more) is None


def test_betas_of_table_3():
    """.8 for self-distillation alone, .7 for the others; on DGCNN .7."""
    flags = result(backbone="pointnet")["stage1"]["flags"]
    of = lambda **more: published.method_of(flags | more)
    assert of(beta=0.8) == "Self-dist GCN + SM-DSB" and of(beta=0.7) is None
    assert of(ssl="gast", beta=0.7) == "GAST + SM-DSB" and of(ssl="gast", beta=0.8) is None
    assert of(beta=0.7, backbone="dgcnn") == "Self-dist GCN + SM-DSB"


@pytest.mark.parametrize("more", [{"measure": "eval"}, {"scratch": True}, {"gcn_iters": 20}, {"perturb": [0, 0]},
                                  {"filter_stream": True}, {"eval_every": 7}])  # fmt: skip
def test_no_two_settings_meet_in_a_cell(more):
    """Plain runs and those with another flag have rows of their own names, in every table."""
    runs = [result(acc=0.1), result(acc=0.9, seed=1, **more)]
    rows = [
        line
        for line in tables.side_by_side(tables.flat(runs)).splitlines()
        if line.startswith("| M_S") and "low minus" not in line
    ]
    names = [line.split(" | ")[0] for line in rows if " | 2 | " in line]
    assert len(names) == len(set(names)) == 2 and "±" not in "".join(rows[:4])
    if "eval_every" in more:
        assert "differ" in refusal(lambda: published.paper_table(published.TABLES["table1"], runs))
    else:
        found = paper_cells("table1", runs)
        assert found["Self-dist GCN + SM-DSB, stage 2", "last"][0] == "10.0 (1)"
        assert sum(cells[0] == "90.0 (1)" for (_, line), cells in found.items() if line == "last") == 1


OTHER = dict(task="M_SC", backbone="pointnet", ssl="gast", select="high", beta=0.3, steps=20, score="gini", alpha=2.0)
OTHER |= dict(measure="eval", mtl="cgdm", points=32, batch_size=16, eval_every=7, perturb=[0, 0], gcn_iters=0)
OTHER |= dict(scratch=True, filter_stream=True, up="y", target_up="x", unit_sphere=True, precision="bf16")


@pytest.mark.parametrize("key", evaluation.FLAGS)
@pytest.mark.parametrize("select", ["low", "random", "all"])
def test_every_flag_is_a_setting_of_its_own(key, select):
    """Rows, and lines of differences, that differ in one flag differ in their text, too."""
    plain = dict(select=select, up="z", unit_sphere=False, filter_stream=False)
    one, two = result(**plain), result(**plain | {key: OTHER[key]})
    rows = tables.side_by_side(tables.flat([one, two])).split("\n\n")[0].splitlines()[2:]
    assert len(rows) == len({tuple(row.split(" | ")[:2]) for row in rows}) == 4  # setting, stage


def test_a_stage_2_says_what_it_started_from():
    """Another selection in stage 1, or a stage 1 in another folder: rows of their own, in the paper's table, too."""
    mixed, lone = result(acc=0.2, seed=1), result(acc=0.3, seed=2) | {"stage1": None}
    mixed["stage1"] = mixed["stage1"] | {"flags": mixed["stage1"]["flags"] | {"select": "all"}}
    runs = [result(acc=0.1), mixed, lone]
    names = [line.split(" | ")[0] for line in tables.side_by_side(tables.flat(runs)).splitlines() if " | 2 | " in line]
    plain = "| M_S dgcnn selfdist low 0.7"
    assert names == [plain, f"{plain} from a stage 1 with select all", f"{plain} from a stage 1 elsewhere"]
    found = paper_cells("table1", runs)
    assert found["Self-dist GCN + SM-DSB, stage 2", "last"][0] == "10.0 (1)"
    assert found["selfdist low 0.7 from a stage 1 with select all, stage 2", "last"][0] == "20.0 (1)"


def test_runs_on_other_clouds_do_not_meet():
    """Two fingerprints of one direction: rows with both said, and no table of the paper."""
    runs = [result(), result(seed=1)]
    runs[1]["data"] = runs[1]["data"] | {"fingerprint": "e" * 64}
    text = tables.side_by_side(tables.flat(runs))
    assert "fingerprint ffffffffffff" in text and "fingerprint eeeeeeeeeeee" in text
    assert "differ" in refusal(lambda: published.paper_table(published.TABLES["table1"], runs))


def test_a_seed_counts_once():
    """Two runs of one setting and seed are refused, in an ordinary table and in the paper's."""
    runs = [result(acc=0.1), result(acc=0.9)]
    assert "seed" in refusal(lambda: tables.side_by_side(tables.flat(runs)))
    assert "seed" in refusal(lambda: published.paper_table(published.TABLES["table1"], runs))


def test_an_untrained_run_is_named_and_left_out():
    """Below 80 % source accuracy at the end: said in its row, and no part of a difference; segmentation has no gate."""
    runs = [result(seed=s, select=k, acc=a) for s in (0, 1) for k, a in (("low", 0.5), ("all", 0.4))]
    runs.append(result(seed=2, select="low", acc=0.9))
    runs.append(result(seed=2, select="all", acc=0.1))
    runs[-1]["stage1"]["curve"][-1] = {"step": 10, "source": 0.79, "target": 0.1}
    text = tables.side_by_side(tables.flat(runs))
    assert "selfdist all **not trained** (seed 2)" in text and "+80.0" not in text and "2 seeds, 2 pairs" in text
    planted = [result(seed=s, select=k, stage=1) for s in (0, 1) for k in ("low", "all")]
    for run in planted:
        run["stage1"]["curve"][-1]["source"] = 0.3
    assert "low minus" not in tables.side_by_side(tables.flat(planted))
    assert tables.trained({"task": "seg_F_A", "last_source": 0.1})


def test_an_untrained_run_is_no_part_of_the_papers_table():
    """Its cell says so and has the others' mean; the mean over directions is empty where nothing is trained."""
    plant = lambda task, seed, acc, source: (
        result(task, seed=seed, acc=acc)
        | {f"stage{n}": result(task, seed=seed, acc=acc)["stage1"] | {"curve": [{"source": source}]} for n in (1, 2)}
    )
    which = published.TABLES["table1"]
    runs = [result(task) for task in which.directions[1:]]
    runs += [plant(which.directions[0], 0, 0.5, 0.9), plant(which.directions[0], 1, 0.9, 0.79)]
    found = paper_cells("table1", runs)["Self-dist GCN + SM-DSB, stage 2", "last"]
    assert found[0] == "50.0 (1) **not trained** (seed 1)" and found[-1] == "50.0"
    assert "below 80% source" in published.paper_table(which, runs)
    found = paper_cells("table1", [*runs[:-2], runs[-1]])["Self-dist GCN + SM-DSB, stage 2", "last"]
    assert found[0] == "**not trained** (seed 1)" and found[-1] == ""


def test_runs_that_do_not_belong_together_are_refused():
    """Other numbers of steps or points: they do not meet in a table."""
    for more in ({"steps": 20}, {"points": 32}):
        with pytest.raises(UserError, match="differ"):
            published.paper_table(published.TABLES["table1"], [result(), result(seed=1, **more)])


# ---------------------------------------------------------------- any runs
def write(folder, content):
    """A result.json in a folder, which is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(content))
    return folder


def test_accuracy_and_iou_do_not_share_a_table(tmp_path):
    """Runs of both kinds: TABLE has the classes, TABLE_seg the bodies; of one kind there is TABLE alone."""
    seg = write(tmp_path / "bodies", result("seg_F_A", "defrec", acc=0.25, stage=1))
    command(paper.main, "table", seg, write(tmp_path / "classes", result()), "--out", tmp_path / "both")
    classes, bodies = (tmp_path / f"both{end}.md" for end in ("", "_seg"))
    assert "accuracy" in classes.read_text() and "seg_" not in classes.read_text()
    assert "mean IoU" in bodies.read_text() and "M_S " not in bodies.read_text()
    assert (tmp_path / "both_seg.csv").exists() and (tmp_path / "both_seg.png").exists()
    command(paper.main, "table", seg, "--out", tmp_path / "one")
    assert "mean IoU" in (tmp_path / "one.md").read_text() and not (tmp_path / "one_seg.md").exists()


def test_without_folders_a_table_takes_all_of_runs(tmp_path, monkeypatch, capsys):
    """Every runs/*/result.json; none is an error of the user's."""
    monkeypatch.chdir(tmp_path)
    assert "make demo" in refusal(lambda: command(paper.main, "table"))
    write(tmp_path / "runs" / "a", result()), write(tmp_path / "runs" / "b", result(seed=1))
    command(paper.main, "table")
    assert "| M_S dgcnn selfdist low 0.7 | 1 | 0 1 |" in (tmp_path / "results" / "table.md").read_text()
    assert "wrote results/table.md" in capsys.readouterr().out


def test_a_result_of_another_version_is_one_line(tmp_path):
    """Without a flag that rows are told apart by, or of another form: the remedy is the command that writes it."""
    old = result()
    del old["stage2"]["flags"]["unit_sphere"]
    for content in (old, {}, []):
        write(tmp_path, content)
        text = refusal(lambda: command(paper.main, "table", tmp_path, "--out", tmp_path / "t"))
        assert f"eval.py --run {tmp_path}" in text


def test_csv_has_a_line_a_run_and_stage_with_five_digits(tmp_path):
    """Everything a table was made from."""
    command(paper.main, "table", write(tmp_path, result(acc=2 / 3)), "--out", tmp_path / "t")
    lines = (tmp_path / "t.csv").read_text().splitlines()
    assert len(lines) == 3 and {"stage", "seed", "score", "last_acc", "fingerprint"} <= set(lines[0].split(","))
    assert "0.66667" in lines[1] and "0.666667" not in lines[1] and all("f" * 13 not in line for line in lines)


def test_an_earlier_tables_csv_stands_for_its_runs(tmp_path):
    """A table of two runs is the same from both folders, from one and a csv, and from the csv alone."""
    folders = [write(tmp_path / str(seed), result(seed=seed, acc=0.5 + seed / 7, stage=1)) for seed in (0, 1)]
    out = lambda name: [(tmp_path / f"{name}{end}").read_text() for end in (".md", ".csv")]
    command(paper.main, "table", *folders, "--out", tmp_path / "both")
    command(paper.main, "table", folders[0], "--out", tmp_path / "first")
    command(paper.main, "table", tmp_path / "first.csv", folders[1], "--out", tmp_path / "joined")
    command(paper.main, "table", tmp_path / "joined.csv", "--out", tmp_path / "again")
    assert out("both") == out("joined") == out("again") and "| 0 1 |" in out("both")[0]
    twice = refusal(lambda: command(paper.main, "table", tmp_path / "joined.csv", folders[0], "--out", tmp_path / "t"))
    assert "give each of them once" in twice and not (tmp_path / "t.md").exists()


def test_a_csv_that_is_no_table_is_one_line(tmp_path):
    """Absent, empty, of something else, or with a column less: the file is named."""
    command(paper.main, "table", write(tmp_path / "run", result()), "--out", tmp_path / "t")
    lines = (tmp_path / "t.csv").read_text().splitlines()
    less = [line.partition(",")[2] for line in lines]
    bad = {
        "empty": b"",
        "other": b"a,b\n1,2\n",
        "less": "\n".join(less).encode(),
        "more": "\n".join([lines[0], *(line + ",1" for line in lines[1:])]).encode(),
        "bytes": b"\xff\xfe\x00",
    }
    for name, content in bad.items():
        path = tmp_path / f"{name}.csv"
        path.write_bytes(content)
        assert f"{name}.csv" in refusal(lambda: command(paper.main, "table", path, "--out", tmp_path / "u"))
    assert "absent.csv" in refusal(lambda: command(paper.main, "table", tmp_path / "absent.csv", "--out", "u"))


def test_the_seeds_of_a_study(monkeypatch):
    """Two settings of three seeds: a line each, a dot a seed, the mean, source accuracy, the gate, n and seeds."""
    figures = []
    monkeypatch.setattr(tables, "save_figure", lambda figure, path: figures.append(figure))
    runs = [
        result(select=k, seed=s, stage=1, acc=a + s / 10) for k, a in (("all", 0.4), ("low", 0.5)) for s in range(3)
    ]
    tables.draw_seeds("x.png", tables.flat(runs))
    target, source = figures[0].axes
    assert [text.get_text() for text in target.get_yticklabels()] == [
        "M_S dgcnn selfdist all, stage 1, 3 seeds",
        "M_S dgcnn selfdist low 0.7, stage 1, 3 seeds",
    ]
    drawn = [line.get_xdata() for line in target.lines if len(line.get_xdata())]
    assert (
        drawn[1] == pytest.approx([40, 50, 60]) and drawn[2] == pytest.approx([50]) and drawn[5] == pytest.approx([60])
    )
    assert source.lines[0].get_xdata() == pytest.approx([85, 85, 85])
    assert "n = 7" in figures[0].get_suptitle() and "seeds 0 1 2" in figures[0].get_suptitle()
    tables.draw_seeds("x.png", tables.flat([result("seg_F_A", "defrec", stage=1)]))
    assert "mean IoU" in figures[1].axes[0].get_xlabel()


def test_the_curves_of_a_study(monkeypatch):
    """Ten runs, two settings: percent over both stages, n and seeds, the gate and right pseudo-labels, if any."""
    figures = []
    monkeypatch.setattr(tables, "save_figure", lambda figure, path: figures.append(figure))
    second = [{"step": step, "source": 0.9, "target": 0.4, "pseudo": 0.6} for step in (0, 20)]
    runs = [result(select=select, seed=seed) for select in ("all", "low") for seed in range(5)]
    for run in runs:
        run["stage2"] = run["stage2"] | {"curve": second}
    tables.draw_curves("x.png", runs)
    tables.draw_curves("x.png", [result("seg_F_A", "defrec", stage=1)])
    (target, source), (body, _) = (figure.axes for figure in figures)
    assert "n = 7" in figures[0].get_suptitle() and "seed 0 1 2 3 4" in figures[0].get_suptitle()
    solid, dashed = ([line for line in target.lines if line.get_linestyle() == style] for style in ("-", "--"))
    assert list(solid[0].get_xydata().ravel()) == [10, 50, 10, 40, 30, 40]  # stage 2 follows the 10 steps of stage 1
    assert list(dashed[0].get_xydata().ravel()) == [10, 60, 30, 60]
    assert all("%" in axes.get_ylabel() for axes in (target, source)) and "mean IoU" in body.get_ylabel()
    names = [text.get_text() for text in figures[0].legends[0].texts]
    assert len(names) == 4 and "gate: 80% on source validation" in names and "share of right pseudo-labels" in names
    assert [text.get_text() for text in figures[1].legends[0].texts] == ["seg_F_A dgcnn-seg defrec low 0.7"]
