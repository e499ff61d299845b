"""Flags that name a trained model; this file imports no JAX."""

from typing import Literal

from increlora_jax.run.flags import Parser, path, path_text, text, type_of
from increlora_jax.values import Reference


def add_model_flags(parser: Parser) -> None:
    """Add the flags of a trained model and its base to a command."""
    add = parser.add_argument_group("model").add_argument
    add("--run", required=True, type=path, metavar="DIR",
        help="the folder of a run, of an adapter, or of a whole model")  # fmt: skip
    add("--adapter", type=type_of(Literal["last", "best"]), default="last", metavar="NAME",
        help="of the last step or the best evaluation (last, best; default last)")  # fmt: skip
    add("--model", type=path_text, metavar="NAME",
        help="where the base model is now: a folder or a hub id")  # fmt: skip
    add("--model-revision", type=text, metavar="NAME", help="the branch, tag or commit of --model")
    add("--model-subfolder", type=text, metavar="DIR", help="where in the folder of --model it is")
    add("--method", type=type_of(Reference), metavar="NAME",
        help="the method of your own that trained the run, whose code is then imported "
        "(package.module:name)")  # fmt: skip
