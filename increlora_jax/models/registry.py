"""The known architectures, by Hugging Face's `model_type`, and how to get one ready to run."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from increlora_jax.errors import InputError
from increlora_jax.models.bert import BERT_WEIGHTS, BertForSequenceClassification
from increlora_jax.models.hf import (
    CONFIG_NAME,
    VOCABULARY_NAMES,
    LoadReport,
    load_weights,
    name_variables,
    read_config,
)
from increlora_jax.models.weight_table import WeightTable

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True)
class ModelSpec:
    """One architecture.

    Attributes:
      build: makes the sequence classifier from the configuration and the keywords `num_labels`,
        `dtype`, `param_dtype`, `rngs` and `classifier_dropout`.
      weights: how its parameters are named on disk.
      target_modules: regex of the dense layers that are adapted unless the user says otherwise.
      modules_to_save: names of the modules that are trained in full.
    """

    build: Callable[..., nnx.Module]
    weights: WeightTable
    target_modules: str
    modules_to_save: tuple[str, ...]


MODELS: dict[str, ModelSpec] = {
    "bert": ModelSpec(
        build=BertForSequenceClassification,
        weights=BERT_WEIGHTS,
        target_modules=(
            r"bert\.encoder\.layer\.\d+\."
            r"(attention\.self\.(query|key|value)|(attention\.output|intermediate|output)\.dense)"
        ),
        modules_to_save=("pooler", "classifier"),
    ),
}

# Hub ids known to be of a type that is not in MODELS: refused before anything is downloaded.
UNPORTED = {"microsoft/deberta-v3-base": "deberta-v2"}
WORKING_IDS = ("google-bert/bert-base-uncased", "sentence-transformers/all-MiniLM-L6-v2")


def check_is_ported(model: str) -> None:
    """Refuse a hub id whose architecture is known to be missing here, without asking the hub.

    Raises:
      InputError: names the architecture and what to use in its stead.
    """
    if model in UNPORTED and not Path(model).is_dir():
        raise InputError(_describe_unported(f"model {model}", UNPORTED[model]))


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
        f"{', '.join(MODELS)}. Take any encoder of BERT's layout, for example "
        f"--model {' or --model '.join(WORKING_IDS)}, or a local folder of such a model"
    )


def abstract_model(
    config: "PretrainedConfig",
    *,
    num_labels: int,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    classifier_dropout: float | None = None,
) -> nnx.Module:
    """Make a model of shapes and dtypes without any numbers, to plan with.

    Raises:
      InputError: the architecture, or something the configuration asks for, is not done here.
    """
    build = partial(
        find_spec(config).build,
        config,
        num_labels=num_labels,
        dtype=dtype,
        param_dtype=param_dtype,
        classifier_dropout=classifier_dropout,
    )
    return _build_abstract(build)


def load_model(
    folder: Path,
    *,
    num_labels: int,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    seed: int = 0,
    classifier_dropout: float | None = None,
) -> tuple[nnx.Module, LoadReport]:
    """Load a sequence classifier; what the folder does not give is drawn from `seed`.

    Dropout is on, as in any new NNX module; `model.eval()` turns it off.

    Raises:
      InputError: the folder holds no model of a known architecture, or the weights do not fit it.
    """
    config = read_config(folder)
    spec = find_spec(config)
    build = partial(
        spec.build,
        config,
        num_labels=num_labels,
        dtype=dtype,
        param_dtype=param_dtype,
        classifier_dropout=classifier_dropout,
    )
    model = _build_abstract(build)
    report = load_weights(model, folder, spec.weights)
    _initialize_rest(model, build, seed)
    return model, report


def _build_abstract(build: Callable[..., nnx.Module]) -> nnx.Module:
    return nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0)))


def _initialize_rest(model: nnx.Module, build: Callable[..., nnx.Module], seed: int) -> None:
    """Give every variable that is still abstract the value that a new model has there."""
    rest = {
        path: variable
        for path, variable in name_variables(model, nnx.Variable).items()
        if isinstance(variable.get_value(), jax.ShapeDtypeStruct)
    }

    # Compiled, so that what the file has given is never drawn: only `rest` is an output.
    @jax.jit
    def initialize(key: jax.Array) -> dict[str, jax.Array]:
        fresh = name_variables(build(rngs=nnx.Rngs(key)), nnx.Variable)
        return {path: fresh[path].get_value() for path in rest}

    for path, value in initialize(jax.random.key(seed)).items():
        rest[path].set_value(value)


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """Load a folder's tokenizer; nothing is downloaded and no code of the folder is run.

    Raises:
      InputError: there is no vocabulary, it cannot be read, or it is larger than the model's.
    """
    if not any((folder / name).is_file() for name in VOCABULARY_NAMES):
        raise InputError(
            f"{folder}: no tokenizer here; copy the model's own into it "
            f"(one of {', '.join(VOCABULARY_NAMES)})"
        )
    tokenizer = _read_tokenizer(folder)
    vocab_size = read_config(folder).vocab_size
    if len(tokenizer) > vocab_size:
        raise InputError(
            f"{folder}: the tokenizer knows {len(tokenizer)} tokens, the model of {CONFIG_NAME} "
            f"only {vocab_size} (vocab_size); copy the model's own tokenizer into the folder"
        )
    return tokenizer


def _read_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer  # takes seconds

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    # The tokenizers library raises plain Exception, and transformers lets KeyError and others out.
    except Exception as error:
        raise InputError(
            f"{folder}: transformers cannot read the tokenizer ({type(error).__name__}: {error}); "
            "copy the model's own tokenizer files into the folder again"
        ) from error
