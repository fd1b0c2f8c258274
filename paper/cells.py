"""The runs that a table consists of, one a cell: where they are, and which are still missing.

    python -m paper cells table1 --seeds 0 1         # run-TASK-SSL-SELECT-SEED of each that is missing, for make
    python -m paper table1 --seeds 0 1               # -> results/table1.md and .csv; cells that were not run are empty

Both take the flags of stage 1 that all cells share, and find a cell's folder as stage1_ssl.py names it.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import data
import stage1_ssl
from engine.base import UserError, csv_text, write_atomically
from engine.flags import Parser, add_flags, number
from eval import read_result
from paper import command, flag
from paper.published import TABLES, final, paper_table
from paper.tables import write_tables

OWN = ("task", "ssl", "select", "mtl", "seed")  # what differs from cell to cell


@dataclass(frozen=True)
class Cell:
    """make's name of a run, its folder, and the stage after which it is finished."""

    name: str
    folder: Path
    stage: int


def sharing(parser):
    """Which cells, and the flags of stage 1 that they share; a table has defaults of its own."""
    parser.add_argument("--methods", nargs="+", action="extend", help="SSL-SELECT, as defrec+pcm-all+pcgrad, or oracle")
    parser.add_argument("--tasks", nargs="+", action="extend", help="directions")
    parser.add_argument("--seeds", type=number(int, 0, 2**32 - 1), nargs="+", action="extend", help="default: 0 1 2")
    parser.add_argument("--stages", type=int, choices=(1, 2), help="1: without stage 2; the table's unless given")
    parser.add_argument("--stage2", default="", metavar="FLAGS", help="flags of stage 2, as one text")
    add_flags(parser, *stage1_ssl.CHOICES)


def settings_of(which, args):
    """Stage 1's flags as the cells share them: given, or the table's, or the paper's."""
    for name in OWN:
        if getattr(args, name) is not None:
            raise UserError(f"--{name}: differs from cell to cell; give --methods, --tasks or --seeds")
    given = {name: getattr(args, name) for name in stage1_ssl.SETTINGS if getattr(args, name) is not None}
    return stage1_ssl.SETTINGS | which.settings | given


def parts_of(method):
    """SSL, SELECT and the way to join the losses of "defrec+pcm-all+pcgrad"; UserError for another form."""
    ssl, _, select = method.partition("-")
    select, _, mtl = select.partition("+")
    parser = Parser()
    add_flags(parser, *stage1_ssl.CHOICES)
    try:
        parser.parse_args(["--ssl", ssl, "--select", select])
    except UserError:
        raise UserError(f"--methods {method}: unknown; give SSL-SELECT, such as selfdist-low, or oracle") from None
    return ssl, select, mtl or "sum"


def cells_of(which, args, methods):
    """A Cell for each direction, method and seed; an oracle's serves all directions with its target."""
    shared, found = settings_of(which, args), []
    for task in args.tasks or which.directions:
        way = data.direction(task)
        if which.backbone and way.dataset is not which.dataset:
            raise UserError(f"--tasks {task}: {which.title} has {' '.join(which.directions)}; drop it")
        for method in methods:
            own, (ssl, select, mtl) = task, parts_of("none-all" if method == "oracle" else method)
            if method == "oracle":
                own = next(name for name, w in data.directions().items() if w.source == w.target == way.target)
            for seed in args.seeds or (0, 1, 2):
                one = {**shared, "task": own, "ssl": ssl, "select": select, "seed": seed}
                one["beta"] = args.beta if args.beta is not None else which.betas.get(ssl, shared["beta"])
                one = stage1_ssl.settle(argparse.Namespace(**one))
                one.mtl = mtl  # after settle: a folder's name needs no library
                if which.backbone not in (None, one.backbone):
                    raise UserError(f"--backbone {one.backbone}: {which.title} is {which.backbone}; drop the flag")
                words = ssl, select + (f"+{mtl}" if mtl != "sum" else ""), seed
                stage = 1 if ssl == "none" else args.stages or which.stages
                name = "-".join(map(str, ("run", own, *words, one.beta)))
                found.append(Cell(name, stage1_ssl.folder_of(one, args.stage2), stage))
    return list(dict.fromkeys(found))


def finished(cell):
    """Whether the cell has a result of its last stage that this version can read."""
    try:
        return read_result(cell.folder)[f"stage{cell.stage}"] is not None
    except UserError:
        return False


@command(flag("table", choices=TABLES), sharing, folder="results")
def cells(args):
    """Names of the cells of a table that are not finished yet, one a line, for make."""
    which = TABLES[args.table]
    return "\n".join(cell.name for cell in cells_of(which, args, args.methods or which.methods) if not finished(cell))


def results_of(which, args):
    """Results of those cells that have one."""
    methods = (*(args.methods or which.methods), *(("oracle",) if which.backbone else ()))  # a bound, where it was run
    found = [cell.folder for cell in cells_of(which, args, methods)]
    return [read_result(folder) for folder in found if (folder / "result.json").exists()]


def write_paper_table(args):
    """OUT.md, and the records behind it as OUT.csv."""
    which = TABLES[args.what]
    results = results_of(which, args)
    text = paper_table(which, results)
    write_atomically(f"{args.out}.md", text.encode())
    write_atomically(f"{args.out}.csv", csv_text([final(result) for result in results]).encode())
    return f"{text}\nwrote {args.out}.md and .csv"


@command(sharing, folder="results")
def table1(args):
    """The paper's Table I: DGCNN on PointDA-10."""
    return write_paper_table(args)


@command(sharing, folder="results")
def table2(args):
    """Table II: PointSegDA."""
    return write_paper_table(args)


@command(sharing, folder="results")
def table3(args):
    """Table III: PointNet on PointDA-10, with gradient surgery."""
    return write_paper_table(args)


@command(sharing, folder="results")
def study(args):
    """The cells of methods of your own, one line a setting and stage: OUT.md, .csv and .png."""
    results = results_of(TABLES["study"], args)
    if not results:
        raise UserError("none of these runs is finished; make study METHODS='...' runs them")
    return write_tables(args.out, results)
