"""The record of an architecture in the registry; each model's file ends with one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from flax import nnx

from increlora_jax.weights.table import WeightTable

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Head = Literal[
    "sequence_classification", "question_answering", "masked_lm", "causal_lm", "seq2seq_lm"
]


def count_positions(config: "PretrainedConfig") -> int:
    """Return the length of a model's table of positions."""
    return config.max_position_embeddings


def allow_any_length(config: "PretrainedConfig") -> None:
    """Return None: relative positions have no last one."""


@dataclass(frozen=True)
class ModelSpec:
    """One architecture.

    Attributes:
        heads: makes a model with a head, from the configuration and the keywords `dtype`,
            `param_dtype` and `rngs`; a sequence classifier also takes `num_labels` and
            `classifier_dropout` (None: the configuration's own rate).
        weights: how the parameters of the model and of all its heads are named on disk.
        target_modules: regex of the dense layers that are adapted unless the user says otherwise.
        modules_to_save: for each head the names of the modules that are trained in full.
        shardings: from regexes, of which exactly one matches a parameter's path as a whole, to the
            axis of a mesh of devices (`fsdp`, `tensor` or none) that divides each of its axes;
            those not named are whole. Where a layer makes heads or an inner width, `tensor` divides
            its outputs; where one takes them in, its inputs. `fsdp` divides the other axis.
        max_length: tells from the configuration how many tokens have positions; None if any number.
    """

    heads: Mapping[Head, Callable[..., nnx.Module]]
    weights: WeightTable
    target_modules: str
    modules_to_save: Mapping[Head, tuple[str, ...]]
    shardings: Mapping[str, tuple[str | None, ...]]
    max_length: Callable[[Any], int | None]
