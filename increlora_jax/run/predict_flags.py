"""Flags of the prediction command; this file imports no JAX."""

from argparse import Namespace
from collections.abc import Sequence

from increlora_jax.errors import InputError
from increlora_jax.run.flags import Parser, path, path_text, text, type_of
from increlora_jax.run.model_flags import add_model_flags

_DESCRIPTION = "Answer texts with a trained model: labels and probabilities, scores, or answers."


def parse_prediction(argv: Sequence[str] | None = None) -> Namespace:
    """Parse the flags of the prediction command, and check that they agree.

    Raises:
        InputError: If a flag is unknown, has a wrong value, or excludes another.
    """
    chosen = prediction_parser().parse_flags(argv)
    if (chosen.text is None) == (chosen.input is None):
        raise InputError("give either --text, or --input with a file or - for standard input")
    if chosen.text2 is not None and len(chosen.text2) != len(chosen.text or ()):
        raise InputError("--text2 is the second of each pair. Give as many as --text")
    if chosen.text_column and chosen.input is None:
        raise InputError("--text-column is for --input. Leave it out")
    for name in ("batch_size", "top_k"):
        value = getattr(chosen, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} {value} is not at least 1")
    return chosen


def prediction_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser("predict", _DESCRIPTION)
    add_model_flags(parser)
    add = parser.add_argument_group("texts").add_argument
    add("--text", type=str, action="append", metavar="TEXT", help="a text; may be given again")
    add("--text2", type=str, action="append", metavar="TEXT",
        help="the second of a pair, or the context of a question")  # fmt: skip
    add("--input", type=path_text, metavar="FILE",
        help="texts by row: .jsonl, .csv, .tsv, .json, .parquet, or .txt with one a line; - is "
        "JSON Lines on standard input")  # fmt: skip
    add("--text-column", type=text, nargs="+", action="extend", metavar="TEXT",
        help="its text columns, if not the task's")  # fmt: skip
    add = parser.add_argument_group("answers").add_argument
    add("--output", type=path, metavar="FILE",
        help="where to write answers: .jsonl, .csv or .tsv; default: JSON Lines on standard "
        "output")  # fmt: skip
    add("--batch-size", type=type_of(int), default=64, metavar="INT",
        help="rows of a batch (default 64)")  # fmt: skip
    add("--top-k", type=type_of(int), metavar="INT",
        help="the number of labels to tell, the most probable first; default: all")  # fmt: skip
    return parser
