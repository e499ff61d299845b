"""The known architectures, by Hugging Face's `model_type`, and how to get one ready to run."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from increlora_jax.errors import InputError
from increlora_jax.models.bart import BART
from increlora_jax.models.bert import BERT
from increlora_jax.models.deberta import DEBERTA
from increlora_jax.models.gpt2 import GPT2
from increlora_jax.models.llama import LLAMA, MISTRAL
from increlora_jax.models.roberta import ROBERTA
from increlora_jax.models.spec import Head, ModelSpec
from increlora_jax.models.t5 import T5
from increlora_jax.quantization import Kind, store_quantized
from increlora_jax.weights.folder import (
    LoadReport,
    load_weights,
    name_variables,
    read_config,
)
from increlora_jax.weights.head_labels import Labels, choose_rows

if TYPE_CHECKING:
    from transformers import PretrainedConfig


MODELS: dict[str, ModelSpec] = {
    "bert": BERT,
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
    "deberta-v2": DEBERTA,
    "gpt2": GPT2,
    "llama": LLAMA,
    "mistral": MISTRAL,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "t5": T5,
    "mt5": T5,
    "bart": BART,
}

WORKING_IDS = ("microsoft/deberta-v3-base", "google-bert/bert-base-uncased")


def find_spec(config: "PretrainedConfig") -> ModelSpec:
    """Look up the architecture of a configuration.

    Raises:
        InputError: it is not one of `MODELS`.
    """
    if config.model_type not in MODELS:
        where = f"model {config.name_or_path}".strip()
        raise InputError(_describe_unported(where, config.model_type))
    return MODELS[config.model_type]


def _describe_unported(where: str, model_type: str) -> str:
    return (
        f'{where}: the architecture "{model_type}" is not ported yet; what works is '
        f"{', '.join(MODELS)}. Take a model of such an architecture, for example "
        f"--model {' or --model '.join(WORKING_IDS)}, or a local folder of such a model"
    )


def abstract_model(
    config: "PretrainedConfig",
    *,
    head: Head = "sequence_classification",
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    quantize: Kind = "none",
    **options: Any,
) -> nnx.Module:
    """Make a model of shapes and dtypes without any numbers, to plan with.

    `quantize` is for the dense layers of its encoder and decoder, those adapted by default.
    `options` are the head's own: `num_labels` and `classifier_dropout` of a classifier.

    Raises:
        InputError: the architecture, its head, or something the configuration asks for, is not
            done.
    """
    build = partial(_builder(config, head), dtype=dtype, param_dtype=param_dtype, **options)
    return _build_abstract(build, find_spec(config), quantize)


def load_model(
    folder: Path,
    *,
    head: Head = "sequence_classification",
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    quantize: Kind = "none",
    seed: int = 0,
    match_labels: bool = False,
    labels: Labels = None,
    **options: Any,
) -> tuple[nnx.Module, LoadReport]:
    """Load a model with a head; what the folder does not give is drawn from `seed`.

    With `match_labels` the rows of the folder's own head are matched with `labels` by name, None
    being a regression; the report says how. Without it they are taken as they are.
    `quantize` is for the dense layers of its encoder and decoder, those adapted by default.
    `options` are the head's own: `num_labels` and `classifier_dropout` of a classifier.
    Dropout is on, as in any new NNX module; `model.eval()` turns it off.

    Raises:
        InputError: the folder holds no model of a known architecture with such a head, or the
            weights do not fit it.
    """
    config = read_config(folder)
    spec = find_spec(config)
    build = partial(_builder(config, head), dtype=dtype, param_dtype=param_dtype, **options)
    model = _build_abstract(build, spec, quantize)
    choose = partial(choose_rows, config, labels) if match_labels else None
    report = load_weights(model, folder, spec.weights, choose)
    rest = {
        path: variable
        for path, variable in name_variables(model, nnx.Variable).items()
        if isinstance(variable.get_value(), jax.ShapeDtypeStruct)
    }
    for path, value in _draw(build, rest, seed).items():
        rest[path].set_value(value)
    return model, report


def draw_parameters(
    folder: Path,
    names: Iterable[str],
    *,
    seed: int,
    head: Head = "sequence_classification",
    param_dtype: DTypeLike = jnp.float32,
    **options: Any,
) -> dict[str, jax.Array]:
    """Draw parameters by path as `load_model` does those that the folder does not give."""
    build = _builder(read_config(folder), head)
    return _draw(partial(build, param_dtype=param_dtype, **options), names, seed)


def _builder(config: "PretrainedConfig", head: Head) -> Callable[..., nnx.Module]:
    heads = find_spec(config).heads
    if head not in heads:
        raise InputError(
            f"model {config.name_or_path}: a {config.model_type} has no head for {head}, only for "
            f"{', '.join(heads)}; take a model of another architecture"
        )
    return partial(heads[head], config)


def _build_abstract(
    build: Callable[..., nnx.Module], spec: ModelSpec, quantize: Kind
) -> nnx.Module:
    model = nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0)))
    store_quantized(model, spec.target_modules, quantize)
    return model


def _draw(
    build: Callable[..., nnx.Module], names: Iterable[str], seed: int
) -> dict[str, jax.Array]:
    """The values that a new model has in the variables of these names."""

    # Compiled, so that what the file has given is never drawn: only `names` are an output.
    @jax.jit
    def initialize(key: jax.Array) -> dict[str, jax.Array]:
        fresh = name_variables(build(rngs=nnx.Rngs(key)), nnx.Variable)
        return {name: fresh[name].get_value() for name in names}

    return initialize(jax.random.key(seed))
