"""Several runs at once, one thread each, under one progress bar: what `make demo` calls. A stopped one goes on.

python -m extras.side_by_side --methods none-all defrec-low --stage2="--steps 200" --task M_SC --data shapes
"""

import engine  # noqa: F401, I001 - first: how torch's threads wait
import os
import re
import signal
import subprocess
import sys
import tempfile
import time

from tqdm import tqdm

import stage1_ssl
from engine.base import ROOT, cli
from engine.flags import Parser, add_flags


class Chain:
    """One run: its commands, one after another; steps of its stages; a file for what it prints."""

    def __init__(self, method, flags, stage2):
        """method: SSL-SELECT; flags: of stage 1, a list; stage2: flags of stage 2, one text."""
        flags, parser = [*flags, "--ssl", method.partition("-")[0], "--select", method.partition("-")[2]], Parser()
        add_flags(parser, *stage1_ssl.CHOICES, **stage1_ssl.SETTINGS)
        args, steps = stage1_ssl.settle(parser.parse_args(flags)), re.findall(r"--steps[ =](\d+)", stage2)
        self.method, self.folder, self.steps = method, stage1_ssl.folder_of(args, stage2), [args.steps]
        one, two = ["stage1_ssl.py", *flags], ["stage2_pseudo.py", *stage2.split(), "--init"]
        self.commands = [[*one, "--out", self.folder], ["eval.py", "--run", self.folder]]
        if args.ssl != "none":  # which has no pseudo-labels to learn from
            self.commands.insert(1, [*two, self.folder / "stage1.pt"])
            self.steps += [int(steps[0]) if steps else args.steps]
        self.output, self.process, self.code = tempfile.TemporaryFile(), None, 0

    def alive(self):
        """Whether a command runs; starts the next one when the last has succeeded. code: of one that ended."""
        self.code = self.process.poll() if self.process else 0
        if self.code == 0 and self.commands:
            argv, env = [sys.executable, *self.commands.pop(0)], {"OMP_NUM_THREADS": "1"} | os.environ
            how = {"stdout": self.output, "stderr": self.output, "start_new_session": True}
            self.process, self.code = subprocess.Popen(argv, cwd=ROOT, env=env, **how), None
        return self.code is None

    def printed(self):
        """The last lines of what was printed; of a progress bar its last state."""
        size = os.fstat(self.output.fileno()).st_size
        text = os.pread(self.output.fileno(), 8192, max(0, size - 8192)).decode(errors="ignore")
        return [line.rpartition("\r")[2] for line in text.split("\n") if line.strip()] or ["printed nothing"]

    def progress(self):
        """Steps done in all stages, and where that is, in words."""
        log = ROOT / self.folder / "log.jsonl"
        rows = re.findall(r'"stage": (\d), "step": (\d+).*}$', log.read_text(), re.M) if log.exists() else []
        stage, step = map(int, rows[-1]) if rows else (1, -1)
        text = f"{self.method}: stage {stage}, step {step + 1} of {self.steps[stage - 1]}"
        return sum(self.steps[: stage - 1]) + step + 1, ", ".join([text, *re.findall("source .*%", self.printed()[-1])])


def follow(chains, stopping):
    """Run them all and show how far they are -> the one that failed first, or None. stopping: signals so far."""
    total, done = sum(sum(chain.steps) for chain in chains), sum(chain.progress()[0] for chain in chains)
    look = dict(disable=None, dynamic_ncols=True, leave=False)  # None: no bar where nobody sits at a terminal
    bar = tqdm(total=total, initial=done, unit="step", smoothing=0.05, **look)
    lines, said, asked, failed, going = [tqdm(bar_format="{desc}", **look) for _ in chains], done, 0, None, True
    while going:
        going = any([chain.alive() for chain in chains])
        steps, texts = zip(*(chain.progress() for chain in chains))
        bar.update(sum(steps) - done)
        for line, text in zip(lines, texts):
            line.set_description_str(text)
        done = sum(steps)
        if bar.disable and done - said >= total / 10:
            said = done
            print(f"{done / total:.0%} | {' | '.join(texts)}", flush=True)
        failed = failed or next((chain for chain in chains if chain.code), None)
        now = len(stopping) or bool(failed)  # a second signal is passed on, too: then they end without saving
        for chain in chains if now > asked else ():
            chain.commands.clear()
            if chain.alive():
                chain.process.terminate()
        asked = max(asked, now)
        time.sleep(0.5 * going)
    for line in (*lines, bar):
        line.close()
    return failed


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--methods", nargs="+", required=True, metavar="SSL-SELECT", help="one run each")
    parser.add_argument("--stage2", default="", metavar="FLAGS", help="flags of stage 2, as one text")
    args, flags = parser.parse_known_args()
    chains, stopping = [Chain(method, flags, args.stage2) for method in args.methods], []
    for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(kind, lambda number, frame: stopping.append(number))
    failed = follow(chains, stopping)
    if failed and not stopping:
        text = "\n".join(failed.printed()[-1 if failed.code == 2 else -20 :])  # else there is a traceback
        print(f"{failed.method}: {text}", file=sys.stderr)
        sys.exit(failed.code if failed.code > 0 else 128 - failed.code)
    for chain in chains:
        print(f"{chain.method}: {chain.printed()[-1] if stopping else f'finished, {chain.folder}'}")
    sys.exit(128 + stopping[0] if stopping else 0)


if __name__ == "__main__":
    cli(main)
