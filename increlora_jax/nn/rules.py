"""The rules by which adapters are applied, beside their arrays."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isclose
from pathlib import Path
from types import GenericAlias, UnionType
from typing import Any

import jax
import numpy as np

from increlora_jax.core.adapter import Scaling
from increlora_jax.errors import InputError
from increlora_jax.files.kinds import check_keys
from increlora_jax.nn.kernels import KernelAxes

Kind = type | GenericAlias | UnionType
"""The kind of a value in a file, for `check_keys`."""

Json = Any
"""A value of a file, before it is checked."""

Axes = dict[str, list[list[int]]]
Value = str | float | Axes
Applied = dict[str, Value]
"""The rules in a file, under the key `applied`."""

_KINDS: dict[str, Kind] = {"lora_alpha": float, "scaling": str}
_MORE: dict[str, Kind] = {"target_rank": float, "axes": Axes, "base": dict[str, list[float]]}
_ROUNDING = 1e-6  # of an α in float32


@jax.tree_util.register_static
@dataclass(frozen=True)
class Rules:
    """Rule for s, and the axes of kernels that are adapted by effective weights."""

    scaling: Scaling
    axes: tuple[tuple[str, KernelAxes], ...]

    def describe(self) -> Applied:
        """Return the rules as JSON; the target rank only if s follows it."""
        alpha, rule, target_rank = self.scaling
        told: Applied = {"lora_alpha": float(alpha), "scaling": rule}
        if rule == "target":
            told["target_rank"] = float(target_rank)
        axes = {path: [list(a) for a in axes] for path, axes in self.axes}
        return told | ({"axes": axes} if axes else {})


def make_rules(scaling: Scaling | None, axes: Mapping[str, KernelAxes]) -> Rules | None:
    """Return the rules of a model's adapters; None without adapters or with traced numbers."""
    numbers = () if scaling is None else (scaling.alpha, scaling.target_rank)
    if scaling is None or any(isinstance(n, jax.core.Tracer) or np.ndim(n) for n in numbers):
        return None
    # The shortest decimal, so that 0.1 stays 0.1 in a state of float32.
    alpha, target_rank = (float(str(np.asarray(number))) for number in numbers)
    own = scaling._replace(alpha=alpha, target_rank=target_rank)
    return Rules(own, tuple(sorted(axes.items())))


def check_rules(file: Path, saved: Json, rules: Rules) -> None:
    """Check that a saved adapter was applied by the same rules.

    Raises:
        InputError: a value differs, and the adapter would compute other numbers; both are named.
    """
    newer = {name: kind for name, kind in _MORE.items() if name in saved}
    check_keys(f"{file}: applied", saved, _KINDS | newer)
    for name, there, here in _pairs(saved, rules.describe()):
        if there != here and not _are_close(there, here):
            raise InputError(
                f"{file}: the adapter was made with {name} {there}, and the model here has {here}: "
                "the adapter would compute other numbers. Attach with the adapter's own settings"
            )


def _pairs(
    saved: Mapping[str, Value], here: Mapping[str, Value]
) -> Iterator[tuple[str, object, object]]:
    for name in ("scaling", "lora_alpha", "target_rank"):
        yield name, saved.get(name), here.get(name)
    there, axes = saved.get("axes"), here.get("axes")
    if isinstance(there, dict) and isinstance(axes, dict):
        for path in sorted(there.keys() & axes.keys()):
            yield f"the axes of {path}", there[path], axes[path]


def _are_close(one: object, other: object) -> bool:
    if not isinstance(one, int | float) or not isinstance(other, int | float):
        return False
    return isclose(one, other, rel_tol=_ROUNDING)
