"""Replay a reference trace through the project's public pieces, in float64."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from increlora_jax.config import AdapterConfig, GrowthConfig, TrainingConfig
from increlora_jax.core.adapter import effective_update
from increlora_jax.methods.increlora import increlora
from increlora_jax.nn.skeleton import split
from increlora_jax.training.prepare import build_trainer
from increlora_jax.training.state import TrainState
from increlora_jax.training.step import Trainer

RTOL = 5e-6
"""Elementwise, in float64. The four published traces agree to 1e-10, smallest entries included."""

PER_STEP = {
    "task_loss": "loss",
    "orth_loss": "orth_loss",
    "grad_norm": "grad_norm",
    "importance": "importance",
    "ema_sensitivity": "sensitivity",
    "ema_uncertainty": "uncertainty",
}


class MLP(nnx.Module):
    """head(tanh(layer_n(… tanh(layer_0(x)))))."""

    def __init__(self, meta: dict, rngs: nnx.Rngs):
        linear = partial(nnx.Linear, rngs=rngs, param_dtype=jnp.float64)
        sizes = meta["sizes"]
        for name, inputs, outputs in zip(meta["modules"], sizes, sizes[1:], strict=False):
            setattr(self, name, linear(inputs, outputs))
        self.head = linear(sizes[-1], meta["classes"])
        self.names = tuple(meta["modules"])

    def __call__(self, x: jax.Array) -> jax.Array:
        for name in self.names:
            x = jnp.tanh(getattr(self, name)(x))
        return self.head(x)


def replay(path: str | Path) -> dict[str, float]:
    """Train as the trace did and compare every recorded number.

    Returns the largest relative error of each quantity. Raises AssertionError naming step and
    quantity at the first that is off.
    """
    with np.load(path) as archive:
        trace = {key: archive[key] for key in archive.files}
    with jax.enable_x64(True):
        return _Replay(trace).run()


class _Replay:
    def __init__(self, trace: dict[str, np.ndarray]):
        self.trace = trace
        self.meta = json.loads(str(trace["meta"]))
        self.errors: dict[str, float] = {}

    def run(self) -> dict[str, float]:
        trainer, state, base = self._build()
        step = jax.jit(trainer.step, static_argnames="is_scored")
        total, importance = int(state.total_rank), None
        groups = [(0, None)]  # each parameter group's birth; see the reference's README
        for t in range(self.meta["steps"]):
            self._check_rates(t, trainer, groups)
            batch = {"x": self.trace["data/x"][t], "y": self.trace["data/y"][t]}
            is_scored = trainer.method.is_scored(t, trainer.method.is_finished(total))
            before = state
            state, info = step(state, base, batch, is_scored=is_scored)
            importance = self._check_step(t, info, is_scored, importance)
            self._check_births(t, before, state, groups)
            total = int(state.total_rank)
        self._check_groups(groups)
        self._check_end(trainer, state)
        return self.errors

    def _build(self) -> tuple[Trainer, TrainState, Any]:
        model = self._model()
        method = self._method(model)
        skeleton, parts = split(method.attach(model, nnx.Rngs(1)), method.is_trained)
        for name in self.meta["modules"]:
            parts.adapters[name] = self._initial(name, parts.adapters[name])
        meta = self.meta
        config = TrainingConfig(
            learning_rate=meta["learning_rate"],
            weight_decay=meta["weight_decay"],
            warmup_steps=meta["warmup_steps"],
            max_grad_norm=meta["max_grad_norm"],
            adam_beta1=meta["adam_betas"][0],
            adam_beta2=meta["adam_betas"][1],
            adam_epsilon=meta["adam_eps"],
        )
        trainer = build_trainer(
            skeleton,
            method,
            _cross_entropy,
            config,
            total_steps=meta["steps"],
            dtype=jnp.float64,
        )
        return trainer, trainer.init(parts, seed=0), parts.base

    def _model(self) -> MLP:
        model = MLP(self.meta, nnx.Rngs(0))
        for name in self.meta["modules"]:
            layer = getattr(model, name)
            layer.kernel[...] = jnp.asarray(self.trace[f"base/{name}/weight"].T)
            layer.bias[...] = jnp.asarray(self.trace[f"base/{name}/bias"])
        model.head.kernel[...] = jnp.asarray(self.trace["init/head/weight"].T)
        model.head.bias[...] = jnp.asarray(self.trace["init/head/bias"])
        return model

    def _method(self, model: MLP) -> Any:
        meta = self.meta
        names = GrowthConfig.__dataclass_fields__
        return increlora(
            model,
            steps=self._steps_to_plan(),
            targets=meta["modules"],
            adapter=AdapterConfig(lora_alpha=meta["lora_alpha"]),
            growth=GrowthConfig(**{k: v for k, v in meta.items() if k in names}, max_rank="exact"),
            is_trained=lambda path: path.startswith("head."),
            dtype=jnp.float64,
        )

    def _steps_to_plan(self) -> int:
        """The trace's steps, or more if it ends before its budget is spent."""
        meta = self.meta
        rounds = meta["target_rank"] * len(meta["modules"])
        return max(meta["steps"], meta["init_warmup"] + meta["incre_interval"] * (rounds + 1))

    def _initial(self, name: str, adapter: Any) -> Any:
        """Put the value with which each slot was created into it; later slots stay as they are."""
        A, B = self.trace[f"init/{name}/A"].T, self.trace[f"init/{name}/B"].T
        return adapter._replace(
            A=adapter.A.at[:, : A.shape[1]].set(A), B=adapter.B.at[: B.shape[0]].set(B)
        )

    def _check_step(self, t: int, info: dict, is_scored: bool, last: Any) -> Any:
        names = PER_STEP if is_scored else ("task_loss", "orth_loss", "grad_norm")
        for name in names:
            self._check(t, name, info[PER_STEP[name]], self.trace[f"trace/{name}"][t])
        ranks = self.trace["trace/rank"][t]
        assert np.array_equal(info["rank"], ranks), f"step {t}: rank {info['rank']} is not {ranks}"
        return info.get("importance", last)

    def _check_births(self, t: int, before: TrainState, after: TrainState, groups: list) -> None:
        """A group is born wherever masks say that some leaf may learn from the next step on."""
        born = {int(b) for s in after.slots.values() for b in [*s.lambda_born, *s.matrix_born]}
        if t + 1 in born:
            groups.append((t + 1, t))

    def _check_rates(self, t: int, trainer: Trainer, groups: list) -> None:
        for index, (birth, _) in enumerate(groups):
            got = trainer.rate(trainer.settings, jnp.asarray(t), jnp.asarray(birth))
            self._check(t, f"group_lr[{index}]", got, self.trace["trace/group_lr"][t, index])

    def _check_groups(self, groups: list) -> None:
        recorded = self.trace["trace/group_lr"].shape[1]
        assert len(groups) == recorded, f"{len(groups)} parameter groups, not {recorded}"

    def _check_end(self, trainer: Trainer, state: TrainState) -> None:
        end = self.meta["steps"]
        rule = AdapterConfig(lora_alpha=self.meta["lora_alpha"]).scaling_rule(1)
        for name in self.meta["modules"]:
            adapter, slots = state.params.adapter[name], state.slots[name]
            count = self.trace[f"final/{name}/lambda"].size
            update = effective_update(adapter, slots, rule)
            kept = {
                "A": adapter.A[:, :count].T,
                "B": adapter.B[:count].T,
                "lambda": adapter.lam[:count],
                "delta": update.delta.T,
            }
            for part, value in kept.items():
                self._check(end, f"final/{name}/{part}", value, self.trace[f"final/{name}/{part}"])
        for part, path in {"weight": "head.kernel", "bias": "head.bias"}.items():
            value = state.params.head[path].T
            self._check(end, f"final/head/{part}", value, self.trace[f"final/head/{part}"])

    def _check(self, t: int, name: str, got: Any, expected: np.ndarray) -> None:
        got = np.asarray(got)
        scale = np.maximum(np.abs(expected), np.finfo(np.float64).tiny)
        error = float(np.max(np.abs(got - expected) / scale, initial=0.0))
        quantity = name.partition("[")[0]
        self.errors[quantity] = max(self.errors.get(quantity, 0.0), error)
        assert error <= RTOL, f"step {t}: {name} is {got}, not {expected} (relative {error:.1e})"


def _cross_entropy(model: nnx.Module, batch: dict) -> tuple[jax.Array, jax.Array]:
    losses = optax.softmax_cross_entropy_with_integer_labels(model(batch["x"]), batch["y"])
    return losses.sum(), jnp.asarray(losses.size, losses.dtype)
