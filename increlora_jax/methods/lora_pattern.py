"""LoRA with a fixed rank for each module: an allocation that another run has found, replayed."""

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import PyTree

from increlora_jax.config import PatternConfig
from increlora_jax.core.adapter import Adapter, Slots
from increlora_jax.errors import InputError, suggest
from increlora_jax.methods import base
from increlora_jax.methods.lora import start_at_zero, widen
from increlora_jax.nn.any_model import attach, plan_targets


def lora_pattern(
    model: PyTree,
    *,
    steps: int | None = None,
    config: PatternConfig = PatternConfig(),
    **given: Unpack[base.Arguments],
) -> base.Method:
    """Return LoRA whose modules have ranks of their own, in buffers of just these widths.

    As `lora`, with s = α/r by each module's rank r. Modules of rank 0 get no adapter.

    Args:
        model: an NNX module, which may be abstract, a `LinenModel` or a pytree of parameters.
        steps: optimizer steps of the run, which are not used; default None.
        config: the rank of every target, as `NAME=RANK` words.
        **given: targets and settings; see `methods.base.Arguments`.

    Returns:
        The method; nothing is attached yet.

    Raises:
        InputError: a target without a rank, a rank without a target, or a rank over a kernel's.

    >>> import increlora_jax as il, jax.numpy as jnp
    >>> params = {"w": jnp.ones((4, 4)), "v": jnp.ones((4, 2))}
    >>> il.lora_pattern(params, config=il.PatternConfig(["w=3", "v=0"])).description
    '1 module of ranks 3 to 3, 3 in all'
    """
    asked = base.read_arguments(**given)
    places = asked.places(model)
    planned = plan_targets(model, **places)
    ranks = _read_ranks(config.rank_pattern or [], planned.sizes)
    settings = places | _settings(asked, ranks, planned.sizes)
    return base.fixed_method(
        "lora-pattern",
        _describe(ranks) + planned.describe(),
        attach=lambda model, rngs: attach(model, rngs=rngs, **settings),
        is_trained=places["is_trained"],
    )


def _settings(
    asked: base.Asked, ranks: dict[str, int], sizes: Mapping[str, tuple[int, int]]
) -> dict[str, Any]:
    """Return what `attach` is given of the adapters; only PiSSA needs more slots than ranks."""
    is_wider = asked.adapter.init == "pissa"
    return {
        "targets": list(ranks),
        "max_rank": widen(sizes, ranks, asked.adapter) if is_wider else ranks,
        "scaling": asked.adapter.scaling_rule(asked.growth.target_rank),
        "dropout": asked.adapter.lora_dropout,
        "dtype": asked.dtype,
        "start": _start,
    }


def _describe(ranks: Mapping[str, int]) -> str:
    many = "module" if len(ranks) == 1 else "modules"
    low, high, total = min(ranks.values()), max(ranks.values()), sum(ranks.values())
    return f"{len(ranks)} {many} of ranks {low} to {high}, {total} in all"


def _read_ranks(words: Sequence[str], sizes: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    """Return the rank of every target that has one above 0, in module order."""
    given = dict(map(_parse, words))
    if missing := [name for name in sizes if name not in given]:
        raise InputError(
            f"--rank-pattern has no rank for {missing[0]}. Add it, or leave the target out with "
            "--exclude-modules"
        )
    if unknown := [name for name in given if name not in sizes]:
        raise InputError(
            f"--rank-pattern: {unknown[0]} is no target of this model"
            f"{suggest(unknown[0], sizes)}. Leave it out, or name it by --target-modules"
        )
    ranks = {name: given[name] for name in sizes if given[name]}
    if not ranks:
        raise InputError("--rank-pattern gives every module rank 0. Give one of them a rank")
    for name, rank in ranks.items():
        if rank > min(sizes[name]):
            raise InputError(f"--rank-pattern {name}={rank} exceeds the module's kernel. Lower it")
    return ranks


def _parse(word: str) -> tuple[str, int]:
    name, equals, rank = word.rpartition("=")
    if not equals or not rank.isdecimal():
        raise InputError(f"--rank-pattern {word}: write NAME=RANK, or name a results.json")
    return name, int(rank)


def _start(
    rngs: nnx.Rngs, shape: tuple[int, ...], max_rank: int, initial_rank: int, dtype: DTypeLike
) -> tuple[Adapter, Slots]:
    """Draw an adapter as LoRA does, with every slot of its own width active."""
    return start_at_zero(rngs, shape, max_rank, max_rank, dtype)
