"""From a configuration to the method it names."""

import re

from flax import nnx

from increlora_jax.config import AdapterConfig, GrowthConfig
from increlora_jax.methods.base import Method
from increlora_jax.methods.full import full
from increlora_jax.methods.head import head
from increlora_jax.methods.increlora import increlora
from increlora_jax.methods.lora import lora
from increlora_jax.nn.attach import parameter_selector
from increlora_jax.nn.targets import ALL_LINEAR, Targets


def build_method(
    model: nnx.Module,
    adapter: AdapterConfig,
    growth: GrowthConfig,
    *,
    steps: int,
    default_targets: Targets,
    default_modules_to_save: list[str],
) -> Method:
    """Make the method for `model`, which may be abstract; nothing is attached yet.

    Raises:
        InputError: targets that match nothing, or a growth plan that cannot finish.
    """
    saved = adapter.modules_to_save or default_modules_to_save
    is_trained = parameter_selector(model, saved)
    if adapter.method == "full":
        return full()
    if adapter.method == "head":
        return head(is_trained)
    targets = as_targets(adapter.target_modules) or default_targets
    exclude = as_targets(adapter.exclude_modules) or ()
    if adapter.method == "lora":
        return lora(
            model,
            targets=targets,
            exclude=exclude,
            adapter=adapter,
            growth=growth,
            is_trained=is_trained,
        )
    return increlora(
        model,
        steps=steps,
        targets=targets,
        exclude=exclude,
        adapter=adapter,
        growth=growth,
        is_trained=is_trained,
    )


def as_targets(words: list[str] | None) -> Targets | None:
    """Read a flag's words: a single one that is no plain name is a regex for the whole path."""
    if words is None or len(words) > 1:
        return words
    is_name = re.fullmatch(r"[\w.]+", words[0]) and words[0] != ALL_LINEAR
    return words if is_name else words[0]
