"""The start of a run from another adapter: of PEFT, or of another run."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from increlora_jax.core.adapter import Adapter, Scaling, Slots
from increlora_jax.errors import InputError
from increlora_jax.files.json_object import read_json_object
from increlora_jax.files.replace import find_folder
from increlora_jax.files.tensors import open_tensors, read_claims
from increlora_jax.interop.peft_files import TASK
from increlora_jax.interop.peft_model import Found, find_paths
from increlora_jax.interop.peft_reading import is_peft, read_peft
from increlora_jax.nn.adapter_files import TENSORS, read_adapter_config
from increlora_jax.nn.bottleneck import is_bottleneck
from increlora_jax.nn.dora import is_magnitude
from increlora_jax.nn.factors import Factors, active_slots, decompose, factors_of
from increlora_jax.nn.rules import make_rules
from increlora_jax.nn.skeleton import Parts
from increlora_jax.run.folder import ADAPTER, CONFIG
from increlora_jax.weights.folder import name_variables
from increlora_jax.weights.table import WeightTable

_SMALLEST = 1e-6
"""Singular values below this share of a module's largest one are rounding, and no rank."""

_FIELD = ".adapter."


class Start(NamedTuple):
    """Updates and head that a run begins with.

    Attributes:
        factors: The update of each module, its columns on the left orthonormal.
        full: Parameters that were trained in full.
        identity: SHA-256 of the files.
        reserve: Ranks among them that were reserve slots of a run whose budget was not spent.
    """

    factors: dict[str, Factors]
    full: dict[str, np.ndarray]
    identity: str
    reserve: int = 0

    @property
    def ranks(self) -> dict[str, int]:
        """The rank of each module."""
        return {path: own.rank for path, own in self.factors.items() if own.rank}

    def describe(self) -> str:
        """Describe it for the user."""
        head = f", and {len(self.full)} parameters trained in full" if self.full else ""
        reserve = f", {self.reserve} of them reserve slots of that run" if self.reserve else ""
        total = sum(self.ranks.values())
        return f"begins with {total} ranks in {len(self.ranks)} modules{reserve}{head}"


def read_start(
    folder: Path,
    model: nnx.Module,
    table: WeightTable,
    identity: Mapping[str, str],
    *,
    ignore_head: bool,
) -> Start:
    """Read the adapter that a run begins with.

    Args:
        folder: A folder of PEFT, or the adapter of a run.
        model: The run's base model with its head, which may be abstract.
        table: The model's names on disk.
        identity: Identities by name that the adapter's run must share.
        ignore_head: Whether the adapter's head is left out.

    Raises:
        InputError: If it cannot be read, or belongs to another model or head.
    """
    where = f"--init-adapter {folder}"
    own = find_folder(folder)
    if (own / CONFIG).is_file():  # a run's folder
        own = find_folder(own / ADAPTER)
    if not own.is_dir():
        raise InputError(f"{where}: no such folder. Name one of PEFT, or a run's adapter/")
    if is_peft(own):
        _check_told(where, own, identity, ignore_head=ignore_head)
        adapter = read_peft(own)
        found = find_paths(model, table, adapter._replace(full={}) if ignore_head else adapter)
    elif (own / TENSORS).is_file():
        found = _read_own(own, identity, ignore_head=ignore_head)
    else:
        raise InputError(f"{where}: no adapter is here. Name a folder of PEFT, or a run's adapter/")
    full = {} if ignore_head else found.full
    _check_plain(where, found)
    _check_head(where, model, full)
    factors = {path: _trim(factors) for path, factors in found.factors.items()}
    return Start(factors, full, _identify(own), _count_reserve(own, factors))


def _count_reserve(folder: Path, factors: Mapping[str, Factors]) -> int:
    """Count the ranks of an adapter of ours that its run did not count."""
    if is_peft(folder):
        return 0
    counted = sum(read_adapter_config(folder)["ranks"].values())
    return max(0, sum(own.rank for own in factors.values()) - counted)


def _check_told(
    where: str, folder: Path, identity: Mapping[str, str], *, ignore_head: bool
) -> None:
    """Check a folder of PEFT by the description that this project's export adds to it."""
    if not (folder / TASK).is_file():
        return
    told = read_json_object(folder / TASK)
    there = told.get("identity")
    known = dict(there) if isinstance(there, dict) else {}
    if not ignore_head:
        known["labels"] = json.dumps(told.get("labels"))
    for name in identity.keys() & known.keys():
        if known[name] != identity[name]:
            raise InputError(
                f"{where} is of a run with another {name}. Give the adapter's own"
                + (", or --ignore-head" if name == "labels" else " by --model")
            )


def _read_own(folder: Path, identity: Mapping[str, str], *, ignore_head: bool) -> Found:
    saved = read_adapter_config(folder)
    there = saved["identity"]
    for name in identity:
        if there.get(name) != identity[name] and not (ignore_head and name == "labels"):
            raise InputError(
                f"{folder} is of a run with another {name}. Give the adapter's own"
                + (", or --ignore-head" if name == "labels" else " by --model")
            )
    claims = read_claims(folder / TENSORS)
    with open_tensors(folder / TENSORS) as reader:
        tensors = {key: np.asarray(reader.get_tensor(key)) for key in claims}
    fields = {key: value for key, value in tensors.items() if _FIELD in key}
    paths = dict.fromkeys(key.partition(_FIELD)[0] for key in fields)

    def take(path: str, names: tuple[str, ...]) -> list[Array]:
        return [jnp.asarray(fields[f"{path}{_FIELD}{name}"]) for name in names]

    applied = saved.get("applied") or {k: saved[k] for k in ("lora_alpha", "scaling")}
    scaling = Scaling(applied["lora_alpha"], applied["scaling"], applied.get("target_rank", 1.0))
    parts = Parts(
        {path: Adapter(*take(path, Adapter._fields)) for path in paths},
        {path: Slots(*take(path, Slots._fields)) for path in paths},
        {},
        {},
        rules=make_rules(scaling, {}),
    )
    full = {key: value for key, value in tensors.items() if key not in fields}
    lengths = {key: value for key, value in full.items() if is_magnitude(key)}
    return Found(factors_of(parts), full, lengths)


def _check_plain(where: str, found: Found) -> None:
    """Check that there is nothing but updates of low rank and parameters of the model's own."""
    kind = "bottlenecks" if any(map(is_bottleneck, found.full)) else "DoRA's lengths"
    if found.magnitudes or kind == "bottlenecks":
        raise InputError(
            f"{where} has {kind}, which can be neither grown nor mixed with other adapters. Name "
            "an adapter of low rank alone"
        )


def _check_head(where: str, model: nnx.Module, full: Mapping[str, np.ndarray]) -> None:
    shapes = {n: v.get_value().shape for n, v in name_variables(model, nnx.Param).items()}
    for path, value in full.items():
        if shapes.get(path) != value.shape:
            raise InputError(
                f"{where}: its {path} is {list(value.shape)}, and this model's "
                f"{list(shapes.get(path, ()))}. Begin with a new head by --ignore-head"
            )


def _trim(factors: Factors) -> Factors:
    """Return the update as a thin SVD, without singular values that are rounding."""
    U, values, V = decompose(factors)
    rank = int((values > _SMALLEST * values[0]).sum()) if len(values) and values[0] else 0
    return Factors(U[:, :rank], values[:rank, None] * V[:rank])


def _identify(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def begin_from(parts: Parts, start: Start) -> Parts:
    """Put a start into a model that was taken apart; the other slots stay as drawn.

    Raises:
        InputError: If the start adapts a module that the run does not, or needs more slots.
    """
    adapters, slots = dict(parts.adapters), dict(parts.slots)
    assert parts.rules is not None
    for path, own in start.factors.items():
        if path not in adapters:
            raise InputError(
                f"--init-adapter adapts {path}, and this run does not. Name it in --target-modules"
            )
        width = adapters[path].A.shape[-1]
        if own.rank > width:
            raise InputError(
                f"--init-adapter has rank {own.rank} in {path}, and the run has {width} slots. "
                "Raise --max-rank, or with --method lora --target-rank"
            )
        if own.rank:
            slots[path] = _open(slots[path], own.rank)
            scale = float(parts.rules.scaling(slots[path].rank, jnp.float32))
            adapters[path] = _fill(adapters[path], own, scale)
    head = {path: jnp.asarray(start.full.get(path, v), v.dtype) for path, v in parts.head.items()}
    base = {p: jnp.asarray(start.full[p], v.dtype) if p in start.full else v
            for p, v in parts.base.items()}  # fmt: skip
    return parts._replace(adapters=adapters, slots=slots, head=head, base=base)


def _open(slots: Slots, rank: int) -> Slots:
    """Return the masks with at least the first `rank` slots active since step 0."""
    width = slots.active.shape[-1]
    opened = active_slots({"": max(rank, int(slots.rank))}, {"": width})[""]
    # λ of LoRA never learns.
    born = jnp.where(opened.active, slots.lambda_born[0], opened.lambda_born)
    return opened._replace(lambda_born=born)


def _fill(adapter: Adapter, factors: Factors, scale: float) -> Adapter:
    """Write an update into the first slots: A = U, λ = σ/s, B = V; with λ = 1, B has σ/s."""
    rank = factors.rank
    values = np.linalg.norm(factors.right, axis=1)
    is_fixed = bool((adapter.lam == 1).all())
    lam = np.ones(rank) if is_fixed else values / scale
    right = factors.right / (scale if is_fixed else values[:, None])
    return Adapter(
        A=adapter.A.at[:, :rank].set(jnp.asarray(factors.left, adapter.A.dtype)),
        lam=adapter.lam.at[:rank].set(jnp.asarray(lam, adapter.lam.dtype)),
        B=adapter.B.at[:rank].set(jnp.asarray(right, adapter.B.dtype)),
    )
