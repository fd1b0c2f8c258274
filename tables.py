"""The paper's Tables I, II and III, filled with the runs there are: the paper's number, and ours in three columns.

    python tables.py 1 runs/a runs/b ...      # -> results/table1.md, from each result.json; what `make table1` calls

A method has four lines: the paper's number, and ours at the last step, at the step best on source validation (the
headline), and at the best of the target test set (a leak). A cell that was not run stays empty.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import data
from common import Parser, UserError, cli, write_atomically
from eval import COLUMNS, footer, method_of, name_of, read_result, reported, spread

LINES = {"last": "last", "source_val": "**source val**", "oracle": "oracle (a leak)"}
SEG_TASKS = tuple(f"seg_{a}_{b}" for a in data.SEG_DOMAINS for b in data.SEG_DOMAINS if a != b)
TABLES = {
    "1": ("Table I", "dgcnn", data.TASKS),
    "2": ("Table II", "dgcnn-seg", SEG_TASKS),
    "3": ("Table III", "pointnet", data.TASKS),
}
NOTE = {
    "1": "Table I's caption says that checkpoints were selected on the test set, so that its numbers may belong beside "
    "*oracle*.",
    "2": "The paper prints 58.1 and 67.2 as the averages of DefRec and of DefRec + SM-DSB; the rows average 57.1 and "
    "58.2, as here. DefRec's author says that the column labels of its own Table 4 were permuted (DefRec_and_PCM, "
    "issue 9); whether Table II inherits that is unknown.",
    "3": "Of its Table III the paper's text quotes two numbers, which are the only ones given here.",
}


def final(result):
    """The stage that counts: the second where it was run, for no adaptation the first."""
    return result["stage2"] if result["stage2"] and result["ssl"] != "none" else result["stage1"]


def row_name(result):
    """The paper's name of a setting, or ours without the direction."""
    flags = final(result)["flags"]
    stage = "" if flags["ssl"] == "none" else f", stage {2 if result['stage2'] else 1}"
    return (method_of(flags) or name_of(flags).removeprefix(f"{flags['task']} {flags['backbone']} ")) + stage


def rows_of(results, backbone, directions):
    """Name -> {line: {direction: text}}: the paper's methods in its order, then what else was run."""
    paper = {key: value for key, value in reported().items() if key[1] == backbone and key[2] in directions}
    found = defaultdict(lambda: defaultdict(list))
    for result in results:
        found[row_name(result)][result["task"]].append(final(result))
    rows = {}
    for method in dict.fromkeys(key[0] for key in paper):
        names = [name for name in found if name.partition(", stage")[0] == method] or [method]
        for name in names:
            rows[name] = {"paper": {d: paper.get((method, backbone, d), "") for d in directions}}
    for name, cells in found.items():
        lines = rows.setdefault(name, {})
        for column in COLUMNS:
            main = "miou" if backbone == "dgcnn-seg" else "acc"
            text = {d: f"{spread([p[column][main] for p in parts])} ({len(parts)})" for d, parts in cells.items()}
            lines[LINES[column]] = text
    return rows


def average(cells, directions):
    """Mean of a line over the directions, where none is missing."""
    values = [float(cells[d].split()[0]) for d in directions if cells.get(d)]
    return f"{sum(values) / len(values):.1f}" if len(values) == len(directions) else ""


def table(number, results):
    """Markdown of one table; UserError when runs of different data or settings would meet in a cell."""
    title, backbone, directions = TABLES[number]
    for result in results:
        if result["backbone"] != backbone or result["task"] not in directions:
            raise UserError(
                f"{title} is {backbone} on {' '.join(directions)}; drop the run of {name_of(final(result)['flags'])}"
            )
    alike = lambda r: (
        r["data"]["name"],
        r["points"],
        *(final(r)["flags"][key] for key in ("batch_size", "up", "unit_sphere")),
    )
    trained = lambda r: data.split_task(r["task"], final(r)["flags"]["oracle"])[0]
    steps = {(trained(r), r["steps"]) for r in results}  # PointSegDA counts epochs of what is trained on
    if len(set(map(alike, results))) > 1 or len(steps) > len(set(map(trained, results))):
        raise UserError(f"{title}: the runs differ in data, steps, points or batch size; give those of one setting")
    n = {r["task"]: str(r["n_test"]) for r in results}
    metric = "mean IoU" if number == "2" else "accuracy"
    names = [d.removeprefix("seg_").replace("_", "→").replace("SC", "S*") for d in directions]
    head = ["method", "", *names, "mean"]
    lines = [f"# {title}: target test {metric}, percent", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines.append("| | n, test clouds | " + " | ".join(n.get(d, "") for d in directions) + " | |")
    for name, parts in rows_of(results, backbone, directions).items():
        for i, (line, cells) in enumerate(parts.items()):
            texts = [name if i == 0 else "", line, *(cells.get(d, "") for d in directions), average(cells, directions)]
            lines.append("| " + " | ".join(texts) + " |")
    note = f"Mean ± std over seeds (how many). {NOTE[number]} A cell that was not run is empty."
    return "\n".join([*lines, "", note, footer(results) if results else ""])


def main():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("number", choices=TABLES)
    parser.add_argument(
        "runs", type=Path, nargs="*", help="folders of runs; those without a result.json stay empty cells"
    )
    parser.add_argument("--out", type=Path, help="default: results/tableN")
    args = parser.parse_args()
    results = [read_result(run) for run in args.runs if (run / "result.json").exists()]
    text, path = table(args.number, results), f"{args.out or f'results/table{args.number}'}.md"
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode())
    print(f"{text}\nwrote {path}")


if __name__ == "__main__":
    cli(main)
