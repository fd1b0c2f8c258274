"""The command line of paper/: a command's flags stand beside it, in the module that has it."""

import engine  # noqa: F401, I001 - first: how torch's threads wait
from pathlib import Path

import paper
from engine.base import UserError, cli
from engine.flags import Parser, path
from paper import cells, claims, figures, finished, lesson, noise, tables, validators  # noqa: F401 - their commands enter themselves


def main():
    parser = Parser(prog="-m paper", description=paper.__doc__)
    commands = parser.add_subparsers(dest="what", required=True, metavar="COMMAND")
    for name, (function, flags, folder) in paper.COMMANDS.items():
        text = function.__doc__
        one = commands.add_parser(name, help=text.partition("\n")[0], description=text, conflict_handler="resolve")
        for add in flags:
            add(one)
        # in place of stage 1's flag, which is the folder of a run
        one.add_argument("--out", type=path, default=Path(folder) / name, help="path to write to, without an ending")
    args = parser.parse_args()
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {args.out}: {error.strerror}; choose a path that can be written") from None
    print(paper.COMMANDS[args.what][0](args))


if __name__ == "__main__":
    cli(main)
