"""From a configuration to the method it names."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from flax import nnx

from increlora_jax.config import AdapterConfig, GrowthConfig
from increlora_jax.methods.base import Method
from increlora_jax.methods.full import full
from increlora_jax.methods.head import head
from increlora_jax.methods.increlora import increlora
from increlora_jax.methods.lora import lora

METHODS: dict[str, Callable[..., Method]] = {
    "increlora": increlora,
    "lora": lora,
    "full": full,
    "head": head,
}
"""Every method by its flag; all take the same arguments."""


def build_method(
    model: nnx.Module,
    adapter: AdapterConfig,
    growth: GrowthConfig,
    *,
    steps: int,
    default_targets: str,
    default_modules_to_save: list[str],
) -> Method:
    """Make the method for `model`, which may be abstract; nothing is attached yet.

    Raises:
        InputError: targets that match nothing, or a growth plan that cannot finish.
    """
    complete: Any = replace(
        adapter,
        target_modules=adapter.target_modules or [default_targets],
        modules_to_save=adapter.modules_to_save or default_modules_to_save,
    )
    return METHODS[adapter.method](model, steps=steps, adapter=complete, growth=growth)
