"""Start of a run by `--init`: from its kernels, or from its first batches."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from increlora_jax.core.probe import DenseProbe
from increlora_jax.errors import InputError
from increlora_jax.models.repeated_layer import RepeatedLayer
from increlora_jax.nn.attach import adapters_of
from increlora_jax.nn.effective import set_kind
from increlora_jax.nn.first_values import begin_eva, begin_gora, begin_lora, begin_pissa
from increlora_jax.nn.low_rank import Arrange, LowRankAdapter
from increlora_jax.nn.skeleton import Parts, Skeleton
from increlora_jax.run.build import Run
from increlora_jax.tasks.kind import Batch, Kind

Sums = dict[str, Array]
"""An array by module, summed over batches."""


def begin_by_init(run: Run) -> Run:
    """Return the run with first values as `--init` says; each seed looks at its own batches.

    Raises:
        InputError: If the adapters have none to begin with, or begin with another adapter's.
    """
    adapter = run.plan.config.adapter
    if adapter.init == "default" or not run.parts.adapters:
        return run
    if run.plan.start:
        raise InputError(f"--init {adapter.init} and --init-adapter both say how it begins")
    begin = _STARTS[adapter.init]
    starts = tuple(begin(run, parts, index) for index, parts in enumerate(run.starts))
    return replace(run, starts=starts)


def _begin_eva(run: Run, parts: Parts, index: int) -> Parts:
    measure = partial(_moments, run.trainer.skeleton, run.plan.data.kind)
    return begin_eva(parts, _add_up(run, parts, index, measure))


def _begin_gora(run: Run, parts: Parts, index: int) -> Parts:
    kind, skeleton = run.plan.data.kind, run.trainer.skeleton
    sums = _add_up(run, parts, index, partial(_gradients, skeleton, kind))
    count = run.plan.config.adapter.init_batches
    return begin_gora(parts, {path: value / count for path, value in sums.items()})


_STARTS: Mapping[str, Callable[[Run, Parts, int], Parts]] = {
    "lora": lambda run, parts, index: begin_lora(parts),
    "pissa": lambda run, parts, index: begin_pissa(parts),
    "eva": _begin_eva,
    "gora": _begin_gora,
}


def _add_up(
    run: Run, parts: Parts, index: int, measure: Callable[[Parts, Batch], Sums]
) -> dict[str, np.ndarray]:
    """Return the sums over the first batches of a seed, in the host's memory."""
    seed = run.plan.members[index].config.training.seed
    count = min(run.plan.config.adapter.init_batches, run.plan.total_steps)
    batches = replace(run.batch_at, seeds=[seed], accumulation=1, block=lambda step: range(1))
    jitted = jax.jit(lambda arrays, base, batch: measure(arrays._replace(base=base), batch))
    bare = parts._replace(base={}, rules=None)
    total: Mapping[str, Any] = {}
    for step in range(count):
        found = jitted(bare, parts.base, run.plan.layout.batch(batches(step)))
        total = {path: total.get(path, 0.0) + value for path, value in found.items()}
    return {path: np.asarray(value) for path, value in total.items()}


def _gradients(skeleton: Skeleton, kind: Kind, parts: Parts, batch: Batch) -> Sums:
    """Compute ∂L/∂W of every adapted layer, without dropout."""

    def loss(probes: dict[str, DenseProbe]) -> Float[Array, ""]:
        total, weight = kind.loss(skeleton.assemble(parts, None, probes), batch)
        mean: Array = total / weight
        return mean

    def zeros(path: str) -> DenseProbe:
        own = parts.adapters[path]
        return DenseProbe(jnp.zeros((own.A.shape[0], own.B.shape[1]), own.A.dtype))

    found = jax.grad(loss)({path: zeros(path) for path in parts.adapters})
    return {path: probe.value for path, probe in found.items()}


class _Recorder(LowRankAdapter):
    """Adapter that keeps Xᵀ X of its inputs, and changes nothing else."""

    mask: Bool[Array, "batch length"]
    moment: Float[Array, "inputs inputs"]

    def add_to(self, y: Array, x: Array, to_rows: Arrange, from_rows: Arrange) -> Array:
        """Add the adapter's part to y; keep Xᵀ X of the tokens that are no padding."""
        rows, mask = to_rows(x), self.mask
        if rows.shape[: mask.ndim] == mask.shape:
            rows = jnp.where(mask[..., None], rows, 0)
        flat = rows.reshape(-1, rows.shape[-1]).astype(jnp.float32)
        self.moment = nnx.data(flat.T @ flat)
        return super().add_to(y, x, to_rows, from_rows)

    def is_best_summed(self, *_: object) -> bool:
        """Return False: W + ΔW would be applied without a call of this adapter."""
        return False


def _moments(skeleton: Skeleton, kind: Kind, parts: Parts, batch: Batch) -> Sums:
    """Compute Xᵀ X of the inputs of every adapted layer."""
    model = skeleton.assemble(parts)
    model.set_attributes(RepeatedLayer, remat="none", is_scanned=False, raise_if_not_found=False)
    recorders: dict[str, Any] = dict(adapters_of(model))
    for own in recorders.values():
        set_kind(own, _Recorder)
        own.mask = nnx.data(jnp.asarray(batch["attention_mask"]) > 0)
    kind.loss(model, batch)
    return {path: own.moment for path, own in recorders.items()}
