"""Flags of the evaluation command; this file imports no JAX."""

from typing import Literal

from increlora_jax.run.flags import Parser, path, path_text, text, type_of
from increlora_jax.values import Reference

_DESCRIPTION = "Evaluate a saved run on its dev data, or on other data with its labels."


def evaluate_parser() -> Parser:
    """Return the parser of the evaluation command."""
    parser = Parser("evaluate", _DESCRIPTION)
    add = parser.add_argument_group("run and data").add_argument
    add(
        "--run",
        required=True,
        type=path,
        metavar="DIR",
        help="the folder of a run, of an adapter, or of a whole model",
    )
    add("--adapter", type=type_of(Literal["last", "best"]), default="last", metavar="NAME",
        help="of the last step or the best evaluation (last, best; default last)")  # fmt: skip
    add("--model", type=path_text, metavar="NAME",
        help="where the base model is now: a folder or a hub id")  # fmt: skip
    add("--model-revision", type=text, metavar="NAME", help="the branch, tag or commit of --model")
    add("--model-subfolder", type=text, metavar="DIR", help="where in the folder of --model it is")
    add("--method", type=type_of(Reference), metavar="NAME",
        help="the method of your own that trained the run, whose code is then imported "
        "(package.module:name)")  # fmt: skip
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
