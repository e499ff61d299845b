"""Flags of the report command; this file imports no JAX."""

from argparse import Namespace
from collections.abc import Sequence

from increlora_jax.errors import InputError
from increlora_jax.run.flags import Parser, path

_DESCRIPTION = """\
Write the report of one run or several as one HTML file that loads nothing: curves, ranks
by module and round, learning rates, speed and settings. Runs may still be training.
"""


def parse_report(argv: Sequence[str] | None = None) -> Namespace:
    """Parse the flags of the report command.

    Raises:
        InputError: If a flag is unknown or has a wrong value, or a run is given twice.
    """
    chosen = report_parser().parse_flags(argv)
    places = [folder.resolve() for folder in chosen.run]
    for folder, place in zip(chosen.run, places, strict=True):
        if places.count(place) > 1:
            raise InputError(f"--run {folder}: given twice. Leave one out")
    return chosen


def report_parser() -> Parser:
    """Return the parser of the report command."""
    parser = Parser("report", _DESCRIPTION)
    add = parser.add_argument_group("report").add_argument
    add("--run", required=True, type=path, action="append", metavar="DIR",
        help="the folder of a run, or of all runs of --seeds or --sweep; may be given "
        "again")  # fmt: skip
    add("--output", required=True, type=path, metavar="FILE",
        help="where to write the report: an .html file")  # fmt: skip
    add("--png", type=path, metavar="DIR",
        help="also draw the charts as PNG files in this folder (needs matplotlib)")  # fmt: skip
    return parser
