"""Names of a model's parameters in its Hugging Face checkpoint.

Each model has one `WeightTable`, which covers both sides. Every parameter of the model has exactly
one key on disk. Every key on disk belongs to a parameter or is ignored by a pattern.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from increlora_jax.errors import InputError


class Place(NamedTuple):
    """The place of a parameter on disk: its key, and whether its two axes are swapped there."""

    key: str
    is_transposed: bool


@dataclass(frozen=True)
class Rule:
    r"""A rule from parameters to keys: paths that fully match the regex `path` have `key`.

    `key` may refer to the groups of `path` (`\1`). If `is_transposed`, the kernel `[in, out]` is
    `[out, in]` on disk, as in PyTorch.
    """

    path: str
    key: str
    is_transposed: bool = False


@dataclass(frozen=True)
class WeightTable:
    """Names of one model's weights. All patterns are regexes that must match a whole name.

    Attributes:
        rules: From parameter paths to current keys; exactly one rule for each parameter.
        renames: From old or prefixed keys to current ones, applied in order to every key of a file.
        ignored: Current keys that the model does not use.
        stand_ins: From a key that a file may lack to current keys that may hold the same weight;
            the first in the file is used. Tied weights are thus found under either name.
        may_be_missing: Parameter paths that a file may lack; they keep their initial values.
        outputs: Parameter paths of the layer with a row for each label. If the file has another
            shape or other labels, the layer is initialized anew.
        body: Current keys of the model without its heads. An unused key in the body is an error,
            and elsewhere a note.
    """

    rules: tuple[Rule, ...]
    renames: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()
    stand_ins: tuple[tuple[str, str], ...] = ()
    may_be_missing: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    body: tuple[str, ...] = (r".+",)

    def find_place(self, path: str) -> Place:
        """Return the place on disk of the parameter at a dotted path.

        Raises:
            InputError: If not exactly one rule matches the path.
        """
        found = [(rule, match) for rule in self.rules if (match := re.fullmatch(rule.path, path))]
        if len(found) != 1:
            raise InputError(
                f"parameter {path}: {len(found)} rules of the weight table name it instead of one. "
                "Only a plain model, without adapters, can be loaded or saved"
            )
        [(rule, match)] = found
        return Place(match.expand(rule.key), rule.is_transposed)

    def rename_key(self, key: str) -> str:
        """Return the current name of a key of any version or prefix."""
        for pattern, replacement in self.renames:
            if match := re.fullmatch(pattern, key):
                key = match.expand(replacement)
        return key

    def list_stand_ins(self, key: str) -> list[str]:
        """List the current keys that may hold the weight of a missing `key`."""
        return [
            match.expand(other)
            for pattern, other in self.stand_ins
            if (match := re.fullmatch(pattern, key))
        ]


def is_matched(name: str, patterns: Iterable[str]) -> bool:
    """Return whether any of the regexes matches the whole name."""
    return any(re.fullmatch(pattern, name) for pattern in patterns)
