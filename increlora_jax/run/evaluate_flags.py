"""Flags of the evaluation command; this file imports no JAX."""

from increlora_jax.run.flags import Parser, path, path_text, text
from increlora_jax.run.model_flags import add_model_flags

_DESCRIPTION = "Evaluate a saved run on its dev data, or on other data with its labels."


def evaluate_parser() -> Parser:
    """Return the parser of the evaluation command."""
    parser = Parser("evaluate", _DESCRIPTION)
    add_model_flags(parser)
    add = parser.add_argument_group("on which data").add_argument
    add("--data-dir", type=path_text, metavar="DIR", help="other data than the run's own")
    add("--split", type=text, metavar="NAME", help="one split of the data: dev, test, train, ...")
    add("--file", type=path_text, metavar="FILE", help="one file, with the task's columns")
    add("--text-column", type=text, nargs="+", action="extend", metavar="TEXT",
        help="its text columns, if not the run's")  # fmt: skip
    add("--label-column", type=text, metavar="TEXT", help="its label column, if not the run's")
    add = parser.add_argument_group("answers").add_argument
    add("--output", type=path, metavar="FILE",
        help="where to write the answer to each example: .jsonl, .csv or .tsv")  # fmt: skip
    return parser
