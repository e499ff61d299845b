"""One small run on many meshes, in a process of `COUNT` CPU devices of its own.

`python -m tests.meshes FOLDER CASE…`, with `ENVIRONMENT`, writes what each case measured to
FOLDER/measured.json. A case is a mesh (`-` for one device), and perhaps a variant of the run:
`plain` is without dropout, `accumulated` is that in four micro-batches a step.
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from increlora_jax.config import AdapterConfig, GrowthConfig
from increlora_jax.methods.increlora import increlora
from increlora_jax.tasks.classification import count_tokens
from increlora_jax.training.checkpoint import Checkpoints, Keep
from increlora_jax.training.loop import jit_step
from increlora_jax.training.progress import Progress
from increlora_jax.training.sharding import Layout, make_mesh
from increlora_jax.training.stacked_state import Stacker
from tests.tiny import MLP, batch_of, start, trains_head

COUNT = 8
ENVIRONMENT = {
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={COUNT}",
    "JAX_PLATFORMS": "cpu",
    "JAX_ENABLE_X64": "1",
}
STEPS, SAVED, ROWS, LAYERS = 10, 5, 8, 3
BAD = (4, 6)
"""The steps of the `bad` variant in which one row of the batch is not finite."""

RULES = {
    r"layers\.[02]\.kernel": ("fsdp", "tensor"),
    r"layers\.1\.kernel": ("tensor", "fsdp"),
    r"layers\.[02]\.bias": ("tensor",),
    r"layers\.1\.bias": (),
    r"head\.(kernel|bias)": (),
}


def layout_of(mesh: str, rules: dict[str, tuple[str | None, ...]] = RULES) -> Layout:
    """Lay out over as many devices as the mesh has; `-` is one."""
    sizes = [int(part.partition("=")[2]) for part in mesh.split(",") if "=" in part]
    devices = jax.devices()[: int(np.prod(sizes))]
    return Layout(make_mesh(None if mesh == "-" else mesh, devices), rules)


def begin(dropout: float, accumulation: int) -> Any:
    """Three modules that grow from 1 to 2 ranks, one a round, at steps 2, 4 and 6."""
    model = MLP(jnp.float64, LAYERS)
    method = increlora(
        model,
        steps=STEPS,
        targets=r"layers\.\d",
        adapter=AdapterConfig(lora_dropout=dropout),
        growth=GrowthConfig(target_rank=2, top_h=1, init_warmup=1, incre_interval=2),
        is_trained=trains_head,
        dtype=jnp.float64,
    )
    training = {"gradient_accumulation_steps": accumulation}
    return start(method, steps=STEPS, dtype=jnp.float64, model=model, **training)


def rows_of(step: int, *, is_bad: bool) -> dict[str, np.ndarray]:
    """The batch of a step; the last row of a bad one is not finite."""
    batch = batch_of(ROWS, seed=step, dtype=np.float64)
    if is_bad:
        batch["x"][-1] = np.nan
    return batch | {"attention_mask": np.ones((ROWS, 1), np.int32)}


def measure(mesh: str, variant: str, folder: Path) -> dict[str, Any]:
    """Train and tell, step by step, what must not depend on the mesh."""
    accumulation = 4 if variant == "accumulated" else 1
    dropout = 0.0 if variant in ("plain", "accumulated") else 0.1
    begun, layout = begin(dropout, accumulation), layout_of(mesh)
    state, base = layout.place(begun.state), layout.place(begun.parts.base)
    first = 0
    checkpoints = Checkpoints(folder / "checkpoints", Keep(1), {})
    if variant == "resumed":
        first, _ = checkpoints.newest()
        state = checkpoints.restore(first, state)
    stacker = Stacker(layout, state)
    state = stacker.stack(state)
    jitted, program, told = (
        jit_step(begun.trainer, layout, state, count_tokens),
        None,
        [],
    )
    for step in range(first, STEPS):
        if variant == "saved" and step == SAVED:
            checkpoints.save(stacker.unstack(state), Progress(step=step))
            checkpoints.wait()
        batch = rows_of(step, is_bad=variant == "bad" and step in BAD)
        if accumulation > 1:
            batch = {n: a.reshape(accumulation, -1, *a.shape[1:]) for n, a in batch.items()}
        placed = layout.batch(batch, axis=int(accumulation > 1))
        # Compiled once, it refuses what lies elsewhere than what it was compiled for.
        program = program or jitted.lower(state, base, placed, is_scored=True).compile()
        state, info = program(state, base, placed)
        told.append(jax.device_get(info))
    state = stacker.unstack(state)
    return {
        "first": first,
        "loss": [float(info["loss"]) for info in told],
        "importance": [info["importance"].tolist() for info in told],
        "rank": [info["rank"].tolist() for info in told],
        "tokens": [int(info["tokens"]) for info in told],
        "skipped": int(state.skipped),
        "head": layout.make_readable(state.params.head)["head.kernel"].tolist(),
        "devices": {
            "base": shard_of(base["layers.0.kernel"]),
            "A": shard_of(state.params.adapter["layers.0"].A),
            "B": shard_of(state.params.adapter["layers.0"].B),
            "moment": shard_of(moment_of_a(state)),
            "active": shard_of(state.slots["layers.0"].active),
        },
    }


def shard_of(array: jax.Array) -> list[int]:
    """The shape of the part that one device holds."""
    return list(array.addressable_shards[0].data.shape)


def moment_of_a(state: Any) -> jax.Array:
    """The first moment of a matrix A."""
    (found,) = (
        leaf
        for path, leaf in jax.tree.leaves_with_path(state.opt_state)
        if all(part in jax.tree_util.keystr(path) for part in (".mu", "layers.0", ".A"))
    )
    return found


def main() -> None:
    """Measure the cases named on the command line, in order."""
    folder, cases = Path(sys.argv[1]), sys.argv[2:]
    measured = {}
    for case in cases:
        mesh, _, variant = case.partition("/")
        measured[case] = measure(mesh, variant, folder)
    (folder / "measured.json").write_text(json.dumps(measured), encoding="utf-8")


if __name__ == "__main__":
    main()
