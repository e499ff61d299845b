"""Flags of the export command; this file imports no JAX."""

from argparse import Namespace
from collections.abc import Sequence
from typing import Literal

from increlora_jax.errors import InputError
from increlora_jax.run.flags import Parser, path, text, type_of
from increlora_jax.run.model_flags import add_model_flags

_DESCRIPTION = "Write a trained model for others: PEFT's LoRA, a whole model, or a smaller adapter."


def parse_export(argv: Sequence[str] | None = None) -> Namespace:
    """Parse the flags of the export command, and check that they agree.

    Raises:
        InputError: If a flag is unknown, has a wrong value, or is not for the format.
    """
    chosen = export_parser().parse_flags(argv)
    of_format = {
        "layout": "peft", "head": "peft", "dtype": "merged", "rank_budget": "native",
        "energy": "native",
    }  # fmt: skip
    for name, form in of_format.items():
        if getattr(chosen, name) is not None and chosen.format != form:
            raise InputError(f"--{name.replace('_', '-')} is for --format {form}. Leave it out")
    if chosen.rank_budget is not None and chosen.energy is not None:
        raise InputError("--rank-budget and --energy both say what to keep. Give one")
    if chosen.rank_budget is not None and chosen.rank_budget < 1:
        raise InputError(f"--rank-budget {chosen.rank_budget} is not at least 1")
    if chosen.energy is not None and not 0 < chosen.energy <= 1:
        raise InputError(f"--energy {chosen.energy} is not above 0 and at most 1")
    return chosen


def export_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser("export", _DESCRIPTION)
    add_model_flags(parser)
    add = parser.add_argument_group("export").add_argument
    add("--format", required=True, type=type_of(Literal["peft", "merged", "native"]),
        metavar="NAME", help="a LoRA for PEFT and servers, a whole model, or an adapter of this "
        "project (peft, merged, native)")  # fmt: skip
    add("--output-dir", required=True, type=path, metavar="DIR", help="where to write it")
    add("--layout", type=type_of(Literal["portable", "compact"]), metavar="NAME",
        help="of peft: one rank padded with zeros, which every server reads, or a rank for each "
        "module, which PEFT reads (portable, compact; default portable)")  # fmt: skip
    add("--head", type=type_of(Literal["modules_to_save", "separate"]), metavar="NAME",
        help="of peft: where what was trained in full goes; separate: a file of its own "
        "(modules_to_save, separate; default modules_to_save)")  # fmt: skip
    add("--dtype", type=type_of(Literal["float32", "bfloat16", "float16"]), metavar="NAME",
        help="of merged: dtype of the weights (float32, bfloat16, float16; default: that of the "
        "base model's files)")  # fmt: skip
    add("--rank-budget", type=type_of(int), metavar="INT",
        help="of native: the total rank to keep, by singular values over all modules")  # fmt: skip
    add("--energy", type=type_of(float), metavar="FLOAT",
        help="of native: the share of the sum of squared singular values to keep")  # fmt: skip
    add("--push-to-hub", type=text, metavar="ID", help="a repository of yours on the hub")
    return parser
