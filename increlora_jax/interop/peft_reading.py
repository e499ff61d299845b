"""LoRA folders of PEFT as factors: LoRA, its rank-stabilised form, DoRA and AdaLoRA."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from increlora_jax.errors import InputError
from increlora_jax.files.json_object import read_json_object
from increlora_jax.files.kinds import check_keys
from increlora_jax.files.tensors import open_tensors, read_claims
from increlora_jax.interop.peft_files import CONFIG, HEAD, LENGTHS, TENSORS
from increlora_jax.nn.factors import Factors
from increlora_jax.weights.stored_tensor import FLOAT_DTYPES

_KEY = re.compile(r"(?:base_model\.model\.)?(.+?)\.(lora_[A-Z]\w*)(?:\.default)?(?:\.weight)?")
_LENGTHS = re.compile(rf"(?:base_model\.model\.)?(.+?)\.{LENGTHS}(?:\.default)?(?:\.weight)?")
_SAVED = re.compile(r"(?:base_model\.model\.)?(.+?)(?:\.modules_to_save(?:\.default)?)?\.(\w+)")

_REFUSED = {
    "use_qalora": "QA-LoRA",
    "use_bdlora": "block-diagonal LoRA",
    "lora_bias": "a LoRA with biases of its own",
    "layer_replication": "layer_replication",
    "target_parameters": "target_parameters",
    "trainable_token_indices": "trainable_token_indices",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow",
    "kasa_config": "KaSA",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
}
"""Entries that change the meaning of the factors, with the names of their methods."""

_CHANGE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Values of `init_lora_weights` that change the base model's weights too."""


_KINDS: dict[str, Any] = {
    "r": int,
    "init_r": int,
    "lora_alpha": float,
    "alpha_pattern": dict[str, float] | None,
    "rank_pattern": dict[str, int | list[bool]] | None,
    "use_rslora": bool,
    "base_model_name_or_path": str | None,
    "task_type": str | None,
}


class PeftAdapter(NamedTuple):
    """A LoRA of PEFT by PyTorch's names.

    Attributes:
        config: The content of its `adapter_config.json`.
        factors: The update of every adapted module, its scale in it.
        full: Parameters that were trained in full, by their keys and shapes on disk.
        magnitudes: DoRA's lengths of the columns of kernels; empty without DoRA.
    """

    config: dict[str, Any]
    factors: dict[str, Factors]
    full: dict[str, np.ndarray]
    magnitudes: dict[str, np.ndarray] = {}  # noqa: RUF012  # nothing changes the default


def is_peft(folder: Path) -> bool:
    """Return whether a folder holds an adapter of PEFT."""
    file = folder / CONFIG
    return file.is_file() and "peft_type" in read_json_object(file)


def read_peft(folder: Path) -> PeftAdapter:
    """Read a folder of PEFT.

    Raises:
        InputError: If it is damaged, or of a kind that is no plain low-rank update; named.
    """
    file = folder / CONFIG
    config = read_json_object(file)
    check_keys(file, config, {n: k for n, k in _KINDS.items() if n in config}, may_have_others=True)
    _check_kind(file, config)
    tensors = _read_tensors(folder / TENSORS)
    if (folder / HEAD).is_file():  # as `write_peft` keeps a head apart
        tensors |= _read_tensors(folder / HEAD)
    parts: dict[str, dict[str, np.ndarray]] = {}
    full, magnitudes = {}, {}
    for key, value in tensors.items():
        if "lora_embedding_" in key:
            raise InputError(f"{folder}: {key} adapts an embedding, which is not read. Merge it")
        if match := _LENGTHS.fullmatch(key):
            magnitudes[match[1]] = value.reshape(-1)
        elif match := _KEY.fullmatch(key):
            parts.setdefault(match[1], {})[match[2]] = value
        elif ".original_module." not in key and (match := _SAVED.fullmatch(key)):
            full[f"{match[1]}.{match[2]}"] = value
    factors = {path: _factors(folder / TENSORS, path, own, config) for path, own in parts.items()}
    if magnitudes.keys() != (factors.keys() if config.get("use_dora") else set()):
        raise InputError(
            f"{folder}: use_dora is {bool(config.get('use_dora'))}, and {len(magnitudes)} of "
            f"{len(factors)} modules have a {LENGTHS}. Save the adapter again"
        )
    return PeftAdapter(config, factors, full, magnitudes)


def _check_kind(file: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind not in ("LORA", "ADALORA"):
        raise InputError(f"{file}: peft_type is {kind}, and LORA and ADALORA are read. Convert it")
    for name, method in _REFUSED.items():
        if config.get(name):
            raise InputError(
                f"{file}: {name} is set. {method} is no plain low-rank update: merge it"
            )
    if config.get("bias", "none") != "none":
        raise InputError(f'{file}: bias is {config["bias"]!r}, and only "none" is read. Merge it')
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(_CHANGE_BASE):
        raise InputError(
            f"{file}: init_lora_weights is {start!r}, which changes the base model too. Save the "
            "adapter with PEFT's path_initial_model_for_weight_conversion first"
        )


def _read_tensors(file: Path) -> dict[str, np.ndarray]:
    if not file.is_file():
        raise InputError(
            f"{file}: no such file. Save the adapter in this format, by PEFT's save_pretrained"
        )
    claims = read_claims(file)
    odd = [key for key, claim in claims.items() if claim.dtype not in FLOAT_DTYPES]
    if odd:
        raise InputError(f"{file}: {odd[0]} holds {claims[odd[0]].dtype} values. Save it as float")
    with open_tensors(file) as reader:
        tensors = {key: np.asarray(reader.get_tensor(key), np.float32) for key in claims}
    bad = [key for key, value in tensors.items() if not np.isfinite(value).all()]
    if bad:
        raise InputError(f"{file}: {bad[0]} holds numbers that are not finite. Get it again")
    return tensors


def _factors(
    file: Path, path: str, own: Mapping[str, np.ndarray], config: Mapping[str, Any]
) -> Factors:
    wanted = {"lora_A", "lora_B"} | ({"lora_E"} if config["peft_type"] == "ADALORA" else set())
    if own.keys() != wanted or any(value.ndim != 2 for value in own.values()):
        raise InputError(
            f"{file}: {path} has {', '.join(sorted(own))}, and {', '.join(sorted(wanted))} of a "
            "dense layer are read. Leave it out of target_modules, or merge it"
        )
    A, B = own["lora_A"], own["lora_B"]
    if A.shape[0] != B.shape[1]:
        raise InputError(f"{file}: {path} has ranks {A.shape[0]} and {B.shape[1]}. Get it again")
    scale = _scale_of(path, A.shape[0], config)
    weights = own["lora_E"][:, 0] * scale if "lora_E" in own else np.float32(scale)
    return Factors(A.T, (B * weights).T.astype(np.float32))


def _scale_of(path: str, rank: int, config: Mapping[str, Any]) -> float:
    """Return s of a module, as PEFT computes it."""
    if config["peft_type"] == "ADALORA":
        first = config.get("init_r", 12)
        return float((config.get("lora_alpha") or first) / (first + 1e-5))
    if rank == 0:
        return 0.0
    alpha = _find(path, config.get("alpha_pattern") or {}, config.get("lora_alpha", 8))
    stated = _find(path, config.get("rank_pattern") or {}, config.get("r", 8))
    if stated != rank:
        raise InputError(
            f"{CONFIG} gives {path} rank {stated}, and its matrices have {rank}. They do not "
            "belong together"
        )
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _find(path: str, patterns: Mapping[str, float], default: float) -> float:
    """Return the value of the first pattern that matches the end of a path, as PEFT does."""
    for key, value in patterns.items():
        try:
            if re.match(rf"(.*\.)?({key})$", path):
                return value
        except re.error as error:
            raise InputError(f"{CONFIG}: the pattern {key!r} is no regex ({error})") from error
    return default
