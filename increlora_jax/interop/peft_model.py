"""A model with the updates of a PEFT folder."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from increlora_jax.core.adapter import Adapter, Scaling
from increlora_jax.errors import InputError
from increlora_jax.interop.peft_reading import LENGTHS, PeftAdapter
from increlora_jax.nn.any_model import attach
from increlora_jax.nn.dora import MAGNITUDE, add_magnitudes, is_magnitude
from increlora_jax.nn.factors import Factors, active_slots
from increlora_jax.nn.skeleton import Parts, Skeleton, split
from increlora_jax.weights.folder import name_variables
from increlora_jax.weights.table import WeightTable


class Found(NamedTuple):
    """An adapter of PEFT by the paths of a model here.

    Attributes:
        factors: The update of every adapted module.
        full: Parameters that were trained in full.
        magnitudes: DoRA's lengths of the columns of kernels, by the path of the layer.
    """

    factors: dict[str, Factors]
    full: dict[str, np.ndarray]
    magnitudes: dict[str, np.ndarray] = {}  # noqa: RUF012  # nothing changes the default


def find_paths(model: nnx.Module, table: WeightTable, adapter: PeftAdapter) -> Found:
    """Find the modules and parameters of an adapter in a model, which may be abstract.

    Raises:
        InputError: If the model lacks one, or has it in another shape; named.
    """
    variables = name_variables(model, nnx.Param)
    places = {path: table.find_place(path) for path in variables}
    paths = {place.key: path for path, place in places.items()}
    shapes = {path: variable.get_value().shape for path, variable in variables.items()}
    factors, full, magnitudes = {}, {}, {}
    for name, own in adapter.factors.items():
        path = _find(paths, table, f"{name}.weight", name)
        _check(name, (own.left.shape[0], own.right.shape[1]), shapes[path])
        factors[path.removesuffix(".kernel")] = own
        if (lengths := adapter.magnitudes.get(name)) is not None:
            _check(f"{name}.{LENGTHS}", lengths.shape, shapes[path][1:])
            magnitudes[path.removesuffix(".kernel")] = lengths
    for key, value in adapter.full.items():
        path = _find(paths, table, key, key)
        array = value.T if places[path].is_transposed else value
        _check(key, array.shape, shapes[path])
        full[path] = np.ascontiguousarray(array)
    return Found(factors, full, magnitudes)


def _find(paths: Mapping[str, str], table: WeightTable, key: str, name: str) -> str:
    today = table.rename_key(key)
    standing = (path for own, path in paths.items() if today in table.list_stand_ins(own))
    path = paths.get(key) or paths.get(today) or next(standing, None)
    if path is None:
        raise InputError(
            f"the adapter has {name}, and the model has no such weights. Give the base model it "
            "was trained on by --model"
        )
    return path


def _check(name: str, given: tuple[int, ...], own: tuple[int, ...]) -> None:
    if given != own:
        raise InputError(
            f"the adapter has {name} for a weight of {list(given)} (inputs first), and the model "
            f"has {list(own)}. Give the base model it was trained on by --model"
        )


def attach_found(model: nnx.Module, found: Found) -> tuple[Skeleton, Parts]:
    """Put the updates on a model, in place, and take it apart; ΔW = A · B, with s = λ = 1."""
    variables = name_variables(model, nnx.Param)
    for path, value in found.full.items():
        variables[path].set_value(jnp.asarray(value))
    widest = max((own.rank for own in found.factors.values()), default=0)
    targets = "|".join(map(re.escape, found.factors))
    if targets:
        attach(model, targets, max_rank=widest, scaling=Scaling(1.0, "target", 1.0),
               is_trained=lambda path: path in found.full)  # fmt: skip
    if found.magnitudes:
        add_magnitudes(model)
        variables = name_variables(model, nnx.Param)
        for path, lengths in found.magnitudes.items():
            variables[f"{path}.{MAGNITUDE}"].set_value(jnp.asarray(lengths))
    skeleton, parts = split(model, lambda path: path in found.full or is_magnitude(path))
    ranks = {path: own.rank for path, own in found.factors.items()}
    return skeleton, parts._replace(
        adapters={path: widen(own, widest) for path, own in found.factors.items()},
        slots=active_slots(ranks, dict.fromkeys(ranks, widest)),
    )


def widen(factors: Factors, width: int) -> Adapter:
    """Return factors as an adapter with so many slots and λ = 1."""
    more = width - factors.rank
    return Adapter(
        A=jnp.asarray(np.pad(factors.left, ((0, 0), (0, more))), jnp.float32),
        lam=jnp.asarray(np.pad(np.ones(factors.rank), (0, more)), jnp.float32),
        B=jnp.asarray(np.pad(factors.right, ((0, more), (0, 0))), jnp.float32),
    )
