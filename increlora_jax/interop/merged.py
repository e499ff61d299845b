"""Whole models in Hugging Face's layout: weights with every update, configuration, tokenizer."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from increlora_jax.errors import InputError
from increlora_jax.files.json_object import read_json_object
from increlora_jax.interop.model import TrainedModel
from increlora_jax.weights.folder import CONFIG_NAME, save_weights
from increlora_jax.weights.stored_tensor import FLOAT_DTYPES
from increlora_jax.weights.tensor_files import list_tensors
from increlora_jax.weights.tokenizer import TOKENIZER_NAMES

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""Dtypes of `--dtype`, with the safetensors format's names."""

WHOLE = "increlora_jax"
"""Key of `config.json` under which a merged model describes its task."""

_COPIED = (*TOKENIZER_NAMES, "generation_config.json", "chat_template.jinja")


def write_merged(
    folder: Path, model: TrainedModel, *, dtype: str | None = None, max_shard_size: str = "5GB"
) -> None:
    """Write a whole model, which `AutoModelFor….from_pretrained` loads.

    Args:
        folder: An empty folder.
        model: The model, whose base is not quantized.
        dtype: A key of `DTYPES`; default: that of each weight in the base model's files.
        max_shard_size: The size above which the weights are split into several files.

    Raises:
        InputError: If the model has no name in transformers.
    """
    base = model.folder
    table = model.table
    stored = {table.rename_key(key): t.dtype for key, t in list_tensors(base).items()}
    usual = DTYPES[dtype or usual_dtype(base)]

    def dtype_of(key: str) -> np.dtype:
        return FLOAT_DTYPES[usual if dtype else stored.get(key, usual)]

    save_weights(model.merge(), folder, table, dtype_of, max_shard_size)
    described = _describe(model, read_json_object(base / CONFIG_NAME), dtype)
    (folder / CONFIG_NAME).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    for name in _COPIED:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)


def usual_dtype(folder: Path) -> str:
    """Return the dtype of most weights of a model's files, as a key of `DTYPES`."""
    known = {word: name for name, word in DTYPES.items()}
    words = [
        known[tensor.dtype] for tensor in list_tensors(folder).values() if tensor.dtype in known
    ]
    return Counter(words).most_common(1)[0][0] if words else "float32"


def _describe(model: TrainedModel, base: dict[str, Any], dtype: str | None) -> dict[str, Any]:
    """Return the content of `config.json`."""
    config = dict(base) | {"architectures": [_name_class(model, str(base["model_type"]))]}
    if dtype:
        config.pop("torch_dtype", None)
        config["dtype"] = dtype
    if model.head == "sequence_classification":
        names = model.labels or ("LABEL_0",)
        config["id2label"] = {str(index): name for index, name in enumerate(names)}
        config["label2id"] = {name: index for index, name in enumerate(names)}
        is_score = model.labels is None
        config["problem_type"] = "regression" if is_score else "single_label_classification"
        config.pop("num_labels", None)
    return config | {WHOLE: dict(model.task)}


def _name_class(model: TrainedModel, model_type: str) -> str:
    """Return transformers' name for the model with its head."""
    # The module itself: its package refuses without PyTorch, which these names do not need.
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    )

    tables: dict[str, Any] = {
        "sequence_classification": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "question_answering": MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
        "causal_lm": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "seq2seq_lm": MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    }
    name = tables.get(model.head, {}).get(model_type)
    if name is None:
        raise InputError(
            f"--format merged: transformers has no {model_type} for {model.head}. Export "
            "by --format native"
        )
    return str(name)
