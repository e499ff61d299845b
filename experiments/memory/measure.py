"""Memory of a training step, by the base's storage and the recomputed parts.

`plan` needs no weights and no accelerator. `run` trains with random weights on the present device.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from transformers import LlamaConfig

from increlora_jax.config import AdapterConfig, GrowthConfig, Importance, TrainingConfig
from increlora_jax.methods.increlora import increlora
from increlora_jax.models.layer_loop import set_scanned
from increlora_jax.models.registry import abstract_model, find_spec
from increlora_jax.models.repeated_layer import Remat, set_remat
from increlora_jax.nn.skeleton import split
from increlora_jax.quantization import Kind, store_like
from increlora_jax.run.build import stack_layers
from increlora_jax.tasks.classification import count_tokens, sequence_loss
from increlora_jax.training.loop import jit_step
from increlora_jax.training.prepare import build_trainer
from increlora_jax.training.sharding import Layout, make_mesh
from increlora_jax.training.stacked_state import Stacker
from increlora_jax.training.step import Trainer
from increlora_jax.weights.folder import name_variables

SHAPES: dict[str, dict[str, Any]] = {
    "llama-7b": {},  # LlamaConfig's own defaults
    "llama-3.2-1b": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_key_value_heads": 8,
        "head_dim": 64,
    },
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
}
GIB = 2**30
INTERVAL = 4
"""Steps between rounds: a short run has every kind of step."""

# By default XLA's CPU removes barriers before it orders a program, and orders for speed.
# Accelerators keep the barriers until the order is fixed.
AS_ACCELERATORS_DO = {
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    "xla_disable_hlo_passes": "cse_barrier_expander",
    "xla_backend_optimization_level": 0,
}


@dataclass(frozen=True)
class Setting:
    """A model, its base's storage, and the recomputed parts."""

    model: str
    quantize: Kind
    remat: Remat
    batch: int
    length: int
    importance: Importance = "sensitivity"
    steps: int = 12
    layers: int | None = None
    is_scanned: bool = False

    @cached_property
    def config(self) -> LlamaConfig:
        """Return the architecture, which may have fewer layers than the real one."""
        shape = SHAPES[self.model]
        if self.layers is not None:
            shape = shape | {"num_hidden_layers": self.layers}
        return LlamaConfig(**shape, pad_token_id=0)

    def batch_at(self, step: int) -> dict[str, np.ndarray]:
        """Draw random tokens without padding."""
        shape = (self.batch, self.length)
        draw = np.random.default_rng(step)
        return {
            "input_ids": draw.integers(1, self.config.vocab_size, shape, dtype=np.int32),
            "attention_mask": np.ones(shape, np.int32),
            "token_type_ids": np.zeros(shape, np.int32),
            "labels": draw.integers(0, 2, self.batch, dtype=np.int32),
            "weight": np.ones(self.batch, np.float32),
        }


@dataclass(frozen=True)
class Begun:
    """A run before its first step; unless drawn, state and base are shapes only."""

    setting: Setting
    trainer: Trainer
    state: Any
    base: Any
    layout: Layout


def begin(setting: Setting, *, is_drawn: bool) -> Begun:
    """Set up a run as the training command does, with other weights and rows."""
    dtypes = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}
    model = abstract_model(setting.config, num_labels=2, quantize=setting.quantize, **dtypes)
    set_remat(model, setting.remat)
    if setting.is_scanned:
        set_scanned(model)
    spec = find_spec(setting.config)
    method = increlora(
        model,
        steps=setting.steps,
        targets=spec.target_modules,
        adapter=AdapterConfig(),
        growth=GrowthConfig(
            target_rank=2,
            top_h=10**6,
            init_warmup=INTERVAL,
            incre_interval=INTERVAL,
            max_rank="32",
            importance=setting.importance,
        ),
        is_trained=lambda path: path.startswith(spec.modules_to_save["sequence_classification"]),
    )
    for path, variable in name_variables(model, nnx.Variable).items():
        if is_drawn or method.is_trained(path) or not isinstance(variable, nnx.Param):
            variable.set_value(draw(path, variable.get_value()))
    adapted = method.attach(model, nnx.Rngs(0))
    skeleton, parts = split(adapted, method.is_trained, is_called_once=True)
    training = TrainingConfig(warmup_steps=1)
    trainer = build_trainer(
        skeleton,
        method,
        partial(sequence_loss, is_regression=False),
        training,
        total_steps=setting.steps,
    )
    layout = Layout(make_mesh(None), spec.shardings)
    stack = stack_layers if setting.is_scanned else dict
    if is_drawn:
        return Begun(
            setting, trainer, layout.place(trainer.init(parts, 0)), stack(parts.base), layout
        )
    state = jax.eval_shape(lambda parts: trainer.init(parts, 0), parts._replace(base={}))
    return Begun(setting, trainer, state, jax.eval_shape(stack, parts.base), layout)


def draw(path: str, parameter: Any) -> Any:
    """Draw random numbers of the size of real weights, stored like the parameter."""
    if jax.dtypes.issubdtype(parameter.dtype, jax.dtypes.prng_key):
        return jax.random.key(0)
    if not jnp.issubdtype(parameter.dtype, jnp.floating):
        return jnp.zeros(parameter.shape, parameter.dtype)
    if path.endswith("norm.scale"):
        return jnp.ones(parameter.shape, parameter.dtype)
    key = jax.random.key(sum(map(ord, path)))
    return store_like(parameter, 0.02 * jax.random.normal(key, parameter.shape, parameter.dtype))


def bytes_of(tree: Any) -> int:
    """Count the bytes of all arrays; of keys, those of their words."""
    sizes = (
        leaf.size * (8 if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else
                     leaf.dtype.itemsize)
        for leaf in jax.tree.leaves(tree)
    )  # fmt: skip
    return sum(sizes)


def kept_bytes(begun: Begun) -> int:
    """Return the bytes that the forward pass keeps for the backward pass."""

    def residuals(state: Any, base: Any, batch: Any) -> list[Any]:
        def loss(params: Any) -> Any:
            parts = begun.trainer.parts(state._replace(params=params), base)
            model = begun.trainer.skeleton.assemble(parts, state.key)
            return begun.trainer.loss(model, batch)[0]

        given = {id(leaf) for leaf in jax.tree.leaves((state, base))}
        kept = jax.tree.leaves(jax.vjp(loss, state.params)[1])
        return [leaf for leaf in kept if id(leaf) not in given]

    return bytes_of(jax.eval_shape(residuals, begun.state, begun.base, begun.setting.batch_at(0)))


def compiled_bytes(begun: Begun, *, is_scored: bool) -> int:
    """Return the bytes that the compiled step takes beside its arguments, on this backend."""
    stacker = Stacker(begun.layout, begun.state)
    jitted = jit_step(begun.trainer, begun.layout, stacker.shapes, count_tokens)
    lowered = jitted.lower(
        stacker.shapes, begun.base, begun.setting.batch_at(0), is_scored=is_scored
    )
    options = AS_ACCELERATORS_DO if jax.default_backend() == "cpu" else None
    return int(lowered.compile(compiler_options=options).memory_analysis().temp_size_in_bytes)


def settings_of(words: argparse.Namespace) -> Iterator[Setting]:
    """Yield every storage of the base with every policy."""
    for quantize, remat in product(words.quantize_base, words.remat):
        yield Setting(
            words.model,
            quantize,
            remat,
            words.batch,
            words.length,
            words.importance,
            layers=words.layers,
            is_scanned=words.scan_layers,
        )


def plan(words: argparse.Namespace) -> Iterator[str]:
    """Yield lines on every storage and policy, known before anything runs."""
    yield f"{words.model}, {words.batch} × {words.length} tokens, bfloat16; GiB"
    for setting in settings_of(words):
        begun = begin(setting, is_drawn=False)
        line = (
            f"{setting.quantize:5} {setting.remat:5} base {bytes_of(begun.base) / GIB:6.2f}  "
            f"state {bytes_of(begun.state) / GIB:5.2f}"
        )
        if not setting.is_scanned:  # uncompiled, a loop seems to keep a copy of the base
            line += f"  kept {kept_bytes(begun) / GIB:6.2f}"
        if words.compile:
            for is_scored in (False, True):
                taken = compiled_bytes(begun, is_scored=is_scored)
                line += f"  {'scored' if is_scored else 'step'} {taken / GIB:6.2f}"
        yield line


def run(words: argparse.Namespace) -> Iterator[str]:
    """Train with random weights until the budget is spent and beyond; yield lines on memory use."""
    for setting in settings_of(words):
        begun = begin(setting, is_drawn=True)
        method, state = begun.trainer.method, begun.state
        stacker = Stacker(begun.layout, state)
        state = stacker.stack(state)
        jitted = jit_step(begun.trainer, begun.layout, state, count_tokens)
        ranks, seconds = [int(state.total_rank)], []
        for step in range(setting.steps):
            batch = begun.layout.batch(setting.batch_at(step))
            start = time.perf_counter()
            is_scored = method.is_scored(step, ranks[-1] == method.rank_budget)
            state, info = jitted(state, begun.base, batch, is_scored=is_scored)
            ranks.append(int(info["total_rank"]))
            seconds.append(time.perf_counter() - start)
        told = jax.local_devices()[0].memory_stats() or {}
        peak = told.get("peak_bytes_in_use")
        memory = "not told by this backend" if peak is None else f"{peak / GIB:.2f} GiB"
        rate = setting.batch * setting.length / min(seconds)
        yield (
            f"{setting.model} {setting.quantize} {setting.remat}: peak memory {memory}; "
            f"ranks {ranks[0]} → {ranks[-1]}; {rate:.0f} tokens/s; loss {float(info['loss']):.4f}"
        )


def main() -> None:
    """Read the command line, and print a line for each setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("plan", "run"))
    parser.add_argument("--model", choices=SHAPES, default="llama-7b")
    parser.add_argument("--quantize-base", nargs="+", choices=get_args(Kind), default=["nf4"])
    parser.add_argument("--remat", nargs="+", choices=get_args(Remat), default=["full"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--importance", choices=get_args(Importance), default="sensitivity")
    parser.add_argument("--layers", type=int, help="fewer than the model has")
    parser.add_argument("--scan-layers", action="store_true", help="layers as a loop")
    parser.add_argument("--compile", action="store_true", help="also compile, for `plan`")
    words = parser.parse_args()
    for line in (plan if words.what == "plan" else run)(words):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
