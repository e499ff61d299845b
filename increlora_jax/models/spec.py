"""Record of an architecture in the registry; each model's file ends with one."""

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
    """Return None: relative positions have no limit."""


@dataclass(frozen=True)
class ModelSpec:
    """A model architecture.

    Attributes:
        heads: For each head a function of the configuration and the keywords `dtype`, `param_dtype`
            and `rngs`. A sequence classifier also takes `num_labels` and `classifier_dropout`
            (None: the configuration's own rate).
        weights: Names on disk of the parameters of the model and of all its heads.
        target_modules: Regex of the dense layers that are adapted by default.
        modules_to_save: For each head the names of the modules that are trained in full.
        shardings: Regexes; exactly one matches a whole parameter path. Each maps to the
            mesh axes (`fsdp`, `tensor` or none) that divide the parameter's axes; further axes are
            whole. `tensor` divides the outputs of a layer that makes heads or an inner width, and
            the inputs of the next. `fsdp` divides the other axis.
        max_length: From the configuration to the number of positions; None if there is no limit.
        sublayer_ends: Regex of the dense layers that end an attention or a feed-forward part, for
            `--method houlsby`. Default: unknown.
        layer_ends: Regex of the modules that end a layer, its norm or its last dense layer, for
            `--method pfeiffer`. Default: unknown.
    """

    heads: Mapping[Head, Callable[..., nnx.Module]]
    weights: WeightTable
    target_modules: str
    modules_to_save: Mapping[Head, tuple[str, ...]]
    shardings: Mapping[str, tuple[str | None, ...]]
    max_length: Callable[[Any], int | None]
    sublayer_ends: str = ""
    layer_ends: str = ""
