"""Command lines: one line for a wrong flag, numbers with a range."""

import argparse
import math

from engine.base import UserError


class Parser(argparse.ArgumentParser):
    """argparse with one line for a wrong flag, and the module's docstring as it is written."""

    def __init__(self, *args, **kw):
        super().__init__(*args, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **kw)

    def error(self, message):
        raise UserError(f"{message}; see python {self.prog} --help")


def number(kind, low, high=math.inf, even=False):
    """An argparse type: a finite number in [low, high]."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (low <= value <= high and math.isfinite(value)) or (even and value % 2):
            span = f">= {low}" if high == math.inf else f"in [{low}, {high}]"
            raise argparse.ArgumentTypeError(f"{text!r} must be {'an even' if even else 'a'} number {span}")
        return value

    return parse
