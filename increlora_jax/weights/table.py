r"""The names of a model's parameters in its Hugging Face checkpoint.

Each model states one `WeightTable`. It is total both ways: every parameter of the model has exactly
one key on disk, and every key on disk is a parameter's or is ignored by name.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from increlora_jax.errors import InputError


class Place(NamedTuple):
    """Where a parameter lies on disk: its key, and whether its two axes are swapped there."""

    key: str
    is_transposed: bool


@dataclass(frozen=True)
class Rule:
    r"""The parameters whose dotted path matches the regex `path` as a whole lie under `key`.

    `key` may refer to the groups of `path` (`\1`). A kernel `[in, out]` that PyTorch keeps as
    `[out, in]` is transposed.
    """

    path: str
    key: str
    is_transposed: bool = False


@dataclass(frozen=True)
class WeightTable:
    """The names of one model's weights. All patterns are regexes that must match as a whole.

    Attributes:
        rules: from the model's parameter paths to today's keys; exactly one rule a parameter.
        renames: from old or bare keys to today's, applied one after the other to every key of a
            file.
        ignored: renamed keys that the model has no use for.
        stand_ins: from a key that a file lacks to a renamed key that may hold the same weight, the
            first that is there: how tied weights are found under whichever of their names was
            saved.
        may_be_missing: parameter paths that a file may lack; they start anew.
        outputs: parameter paths of the layer with a row for each label; it starts anew where the
            file has another shape or other labels.
        body: renamed keys of the model without its heads; a key that is left over is an error
            there, and elsewhere a note.
    """

    rules: tuple[Rule, ...]
    renames: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()
    stand_ins: tuple[tuple[str, str], ...] = ()
    may_be_missing: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    body: tuple[str, ...] = (r".+",)

    def find_place(self, path: str) -> Place:
        """Tell where the parameter at a dotted path lies on disk.

        Raises:
            InputError: no rule, or more than one, speaks of this path.
        """
        found = [(rule, match) for rule in self.rules if (match := re.fullmatch(rule.path, path))]
        if len(found) != 1:
            raise InputError(
                f"parameter {path}: {len(found)} rules of the weight table name it instead of one; "
                "only a plain model, with nothing attached to it, can be loaded or saved"
            )
        [(rule, match)] = found
        return Place(match.expand(rule.key), rule.is_transposed)

    def rename_key(self, key: str) -> str:
        """Turn a key of any age or prefix into today's."""
        for pattern, replacement in self.renames:
            if match := re.fullmatch(pattern, key):
                key = match.expand(replacement)
        return key

    def list_stand_ins(self, key: str) -> list[str]:
        """List the renamed keys under which a file without `key` may hold its weight."""
        return [
            match.expand(other)
            for pattern, other in self.stand_ins
            if (match := re.fullmatch(pattern, key))
        ]


def is_matched(name: str, patterns: Iterable[str]) -> bool:
    """Tell whether any of the regexes matches the name as a whole."""
    return any(re.fullmatch(pattern, name) for pattern in patterns)
