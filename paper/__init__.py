"""The paper's figures and tables, and what they leave open; nothing trained here is reported elsewhere.

    python -m paper fig1 --task M_SC --data shapes --backbone pointnet --steps 240 --points 200 --batch-size 32
    python -m paper COMMAND --help                   # its flags; `make help` has the make targets

figures.py trains and looks on: fig1, persample, fig4, fig6, fig7, measure; lesson.py puts most of them on one sheet
noise.py makes a known share of pseudo-labels wrong; validators.py compares label-free choices of the checkpoint
finished.py reads what runs have left: fig3, fig5, fig8, fig11, anm; claims.py pools fig1 and persample over seeds
tables.py puts runs side by side; cells.py: of which runs Tables I, II and III consist, and which are still missing
conflict.py has the gradients, evidence.py the statistics, draw.py the pictures, reported.csv the paper's numbers
"""

COMMANDS = {}  # name -> (function of args, what adds its flags to a parser, folder that it writes to)


def command(*flags, folder="results/figures"):
    """Decorator: `python -m paper NAME` calls the function of that name and prints what it returns.

    Each of `flags` is a function of the command's parser; all commands have --out, FOLDER/NAME.
    """

    def enter(function):
        COMMANDS[function.__name__] = function, flags, folder
        return function

    return enter


def flag(*names, **kw):
    """One flag for `command`, as argparse has it."""
    return lambda parser: parser.add_argument(*names, **kw)
