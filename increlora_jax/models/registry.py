"""Known architectures, by Hugging Face's `model_type`, and the loading of their models."""

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
    """Return the specification of a configuration's architecture.

    Raises:
        InputError: If it is not one of `MODELS`.
    """
    if config.model_type not in MODELS:
        where = f"model {config.name_or_path}".strip()
        raise InputError(_describe_unported(where, config.model_type))
    return MODELS[config.model_type]


def _describe_unported(where: str, model_type: str) -> str:
    return (
        f'{where}: the architecture "{model_type}" is not ported yet. Take a model of '
        f"{', '.join(MODELS)}, for example "
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
    """Create a model of shapes and dtypes without numbers, for planning.

    Args:
        config: The architecture.
        head: The head.
        dtype: Dtype of computation.
        param_dtype: Dtype of the parameters.
        quantize: Format of the dense layers of encoder and decoder, which are adapted by default.
        options: The head's own options: `num_labels` and `classifier_dropout` of a classifier.

    Raises:
        InputError: If the architecture, its head or its configuration is not supported.
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
    """Load a model with a head, in training mode; missing parameters are drawn from `seed`.

    Args:
        folder: The model's folder.
        head: The head.
        dtype: Dtype of computation.
        param_dtype: Dtype of the parameters.
        quantize: Format of the layers that are adapted by default.
        seed: Seed of new parameters.
        match_labels: Whether rows of the folder's own head are matched with `labels` by name.
        labels: The labels' names; None is a regression.
        options: The head's options: `num_labels`, `classifier_dropout`.

    Raises:
        InputError: If there is no known model with such a head, or the weights do not fit it.
    """
    config = read_config(folder)
    spec = find_spec(config)
    build = partial(_builder(config, head), dtype=dtype, param_dtype=param_dtype, **options)
    model = _build_abstract(build, spec, quantize)
    choose = partial(choose_rows, config, labels) if match_labels else None
    report = load_weights(model, folder, spec.weights, choose)
    variables = name_variables(model, nnx.Variable)
    rest = {path: v for path, v in variables.items() if _is_abstract(v)}
    for path, value in _draw(build, rest, seed).items():
        rest[path].set_value(value)
    return model, report


def _is_abstract(variable: nnx.Variable) -> bool:
    return isinstance(variable.get_value(), jax.ShapeDtypeStruct)


def draw_parameters(
    folder: Path,
    names: Iterable[str],
    *,
    seed: int,
    head: Head = "sequence_classification",
    param_dtype: DTypeLike = jnp.float32,
    **options: Any,
) -> dict[str, jax.Array]:
    """Draw parameters by path, exactly as `load_model` does for missing ones.

    Args:
        folder: The model's folder.
        names: The parameters' dotted paths.
        seed: Seed of new parameters.
        head: The head.
        param_dtype: Dtype of the parameters.
        options: The head's own options.

    Returns:
        The arrays by path.
    """
    build = _builder(read_config(folder), head)
    return _draw(partial(build, param_dtype=param_dtype, **options), names, seed)


def _builder(config: "PretrainedConfig", head: Head) -> Callable[..., nnx.Module]:
    heads = find_spec(config).heads
    if head not in heads:
        raise InputError(
            f"model {config.name_or_path}: a {config.model_type} has no head for {head}, only for "
            f"{', '.join(heads)}. Take a model of another architecture"
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
    """Return a new model's values of the named variables."""

    # Compiled with only `names` as outputs, so that other parameters are never drawn.
    @jax.jit
    def initialize(key: jax.Array) -> dict[str, jax.Array]:
        fresh = name_variables(build(rngs=nnx.Rngs(key)), nnx.Variable)
        return {name: fresh[name].get_value() for name in names}

    return initialize(jax.random.key(seed))
