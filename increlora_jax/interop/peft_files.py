"""LoRA folders of PEFT: `adapter_config.json` and `adapter_model.safetensors`."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from increlora_jax.errors import InputError
from increlora_jax.files.tensors import write_tensors
from increlora_jax.interop.model import TrainedModel
from increlora_jax.nn.factors import Factors, factors_of
from increlora_jax.weights.table import WeightTable

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
TASK = "increlora_jax.json"
"""File with the description of the task, for this project."""

HEAD = "head.safetensors"
"""File of the parameters trained in full, if they are kept apart."""

LENGTHS = "lora_magnitude_vector"
"""Name of DoRA's lengths of the columns of a kernel."""

Layout = Literal["portable", "compact"]

_PREFIX = "base_model.model."


TASK_TYPES = {
    "sequence_classification": "SEQ_CLS",
    "causal_lm": "CAUSAL_LM",
    "seq2seq_lm": "SEQ_2_SEQ_LM",
}
"""PEFT's words for heads. PEFT's model for questions drops token types, so that it is not named."""


def write_peft(
    folder: Path, model: TrainedModel, *, layout: Layout = "portable", is_head_apart: bool = False
) -> None:
    """Write a LoRA folder as PEFT reads it; its scale α/r is 1 in every module.

    Args:
        folder: An empty folder.
        model: The model.
        layout: `portable` pads every module with zeros to one rank. `compact` keeps the rank of
            each module by patterns, which PEFT reads and servers mostly do not.
        is_head_apart: Whether parameters trained in full go to a file of their own.

    Raises:
        InputError: If there is nothing for PEFT to adapt.
    """
    factors = {_name(model.table, path): own for path, own in factors_of(model.parts).items()}
    modules = sorted(factors)
    widest = max((own.rank for own in factors.values()), default=0)
    if widest == 0:
        raise InputError(
            "--format peft: no module has an update. Export this model by --format merged"
        )
    if layout == "portable":
        factors = {path: _widen(own, widest) for path, own in factors.items()}
    else:
        factors = {path: own for path, own in factors.items() if own.rank}
    tensors = _name_tensors(model, factors)
    full = model.own_on_disk()
    if is_head_apart and full:
        write_tensors(full, folder / HEAD)
    else:
        tensors |= {f"{_PREFIX}{key}": value for key, value in full.items()}
    write_tensors(tensors, folder / TENSORS)
    ranks = {path: own.rank for path, own in factors.items()}
    config = _describe(model, ranks, modules, is_head_apart=is_head_apart)
    own = {**model.task, "identity": dict(model.identity)}
    for name, content in ((CONFIG, config), (TASK, own)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _name_tensors(model: TrainedModel, factors: Mapping[str, Factors]) -> dict[str, np.ndarray]:
    """Return the arrays of the adapters by their keys."""
    tensors = {f"{_PREFIX}{path}.lora_A.weight": own.left.T for path, own in factors.items()}
    tensors |= {f"{_PREFIX}{path}.lora_B.weight": own.right.T for path, own in factors.items()}
    for path, lengths in model.magnitudes.items():
        tensors[f"{_PREFIX}{_name(model.table, path)}.{LENGTHS}"] = lengths
    return tensors


def _widen(factors: Factors, rank: int) -> Factors:
    more = rank - factors.rank
    return Factors(np.pad(factors.left, ((0, 0), (0, more))),
                   np.pad(factors.right, ((0, more), (0, 0))))  # fmt: skip


def _describe(
    model: TrainedModel, ranks: Mapping[str, int], modules: Sequence[str], *, is_head_apart: bool
) -> dict[str, Any]:
    """Return the content of `adapter_config.json`."""
    counts = Counter(ranks.values())
    usual = counts.most_common(1)[0][0]
    others = {} if len(counts) == 1 else _write_patterns(ranks, modules)
    saved = None if is_head_apart else _name_saved(model) or None
    places = [model.table.find_place(f"{path}.kernel") for path in model.parts.adapters]
    return {
        "peft_type": "LORA",
        # With the word for a head, PEFT would look for the head in this folder.
        "task_type": None if is_head_apart else TASK_TYPES.get(model.head),
        "auto_mapping": None,
        "base_model_name_or_path": model.base_model,
        "revision": model.revision,
        "inference_mode": True,
        "r": usual,
        "lora_alpha": usual,
        "lora_dropout": 0.0,
        "bias": "none",
        # GPT-2's layers keep [inputs, outputs].
        "fan_in_fan_out": not any(place.is_transposed for place in places),
        "use_rslora": False,
        "use_dora": bool(model.magnitudes),
        "init_lora_weights": True,
        "layers_to_transform": None,
        "layers_pattern": None,
        "target_modules": sorted(ranks),
        "modules_to_save": saved,
        "rank_pattern": others,
        "alpha_pattern": others,
    }


def _name(table: WeightTable, path: str) -> str:
    """Return PyTorch's name of a module."""
    return table.find_place(f"{path}.kernel").key.removesuffix(".weight")


def _name_saved(model: TrainedModel) -> list[str]:
    """Return PyTorch's names of the modules that were trained in full.

    A module that the run names stands for its inner layers.
    """
    found: dict[str, None] = {}
    for path in model.own:
        parent = model.table.find_place(path).key.rpartition(".")[0]
        for word in model.modules_to_save:
            if match := re.match(rf"((?:.*\.)?{re.escape(word)})(?:\.|$)", parent):
                parent = match[1]
                break
        found[parent] = None
    return list(found)


def _write_patterns(ranks: Mapping[str, int], modules: Sequence[str]) -> dict[str, int]:
    """Return each module's rank under a key that PEFT finds for this module alone.

    PEFT takes the first key that matches the end of a module's path as a regex.
    """
    return {_write_key(path, modules): rank for path, rank in ranks.items()}


def _write_key(path: str, modules: Sequence[str]) -> str:
    for key in (path, f"^{re.escape(path)}"):
        pattern = re.compile(rf"(.*\.)?({key})$")
        if [other for other in modules if pattern.match(other)] == [path]:
            return key
    raise InputError(f"{path}: no pattern of PEFT's names this module alone. Use another layout")
