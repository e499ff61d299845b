"""Check of `--packing`: whether the examples of a run may share rows."""

from typing import Any

from increlora_jax.config import RunConfig
from increlora_jax.errors import InputError
from increlora_jax.tasks.kind import Kind
from increlora_jax.training.sharding import Layout


def check_packing(model: Any, layout: Layout, config: RunConfig, kind: Kind) -> bool:
    """Return whether examples may share a row.

    Args:
        model: The model, which may be abstract.
        layout: The layout over the devices.
        config: All settings.
        kind: The kind of the task.

    Raises:
        InputError: If `--packing` asks for it and they may not.
    """
    obstacle = _find_obstacle(model, layout, kind)
    if obstacle and config.task.packing is True:
        raise InputError(f"--packing{obstacle}")
    return not obstacle and config.task.packing is not False


def _find_obstacle(model: Any, layout: Layout, kind: Kind) -> str:
    """Return why examples may not share a row, as the end of a message; empty if they may."""
    if kind.pack is None:
        return f" does not support --task {kind.task}. Leave it out"
    if not model.can_pack:
        return (
            f": {type(model).__name__} does not read several examples in a row, only sequence "
            "classifiers of BERT, RoBERTa and DeBERTa without a convolution. Leave it out"
        )
    if layout.blocks > 1:
        return (
            " cannot be used if --mesh divides the rows of a batch, over data or fsdp. Leave one "
            "of them out"
        )
    return ""
