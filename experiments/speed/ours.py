"""Contenders of this package: the training command's own step, on a batch on the device."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from schedule import compress, scored_steps
from work import Work

import increlora_jax as il
from increlora_jax.core.adapter import init_slots
from increlora_jax.models.fused_attention import set_attention
from increlora_jax.models.layer_loop import set_scanned
from increlora_jax.models.registry import load_model
from increlora_jax.models.repeated_layer import set_remat
from increlora_jax.run.build import stack_layers
from increlora_jax.tasks.classification import count_tokens, sequence_loss
from increlora_jax.training.loop import jit_step
from increlora_jax.training.sharding import Layout, make_mesh
from increlora_jax.training.stacked_state import Stacker

il.keep_freed_memory()  # both as in the training command
il.dispatch_synchronously()

Told = dict[str, Any]
Run = Callable[[int], Told]
"""A function that runs a number of steps, waits for the last, and returns its numbers."""


class Training:
    """A model under training by a method; each step is scored or not."""

    def __init__(
        self,
        work: Work,
        make_method: Callable[..., il.Method],
        growth: il.GrowthConfig,
        steps: int,
        *,
        is_scanned: bool = False,
    ):
        model = _load(work) if work.folder else _draw(work)
        set_remat(model, work.remat)
        set_attention(model, work.attn_implementation)
        if is_scanned:
            set_scanned(model)
        self.method = make_method(
            model,
            targets=list(work.sizes),
            adapter=il.AdapterConfig(lora_dropout=work.lora_dropout),
            growth=growth,
            is_trained=il.parameter_selector(
                model, work.spec.modules_to_save["sequence_classification"]
            ),
        )
        config = il.TrainingConfig(
            learning_rate=work.recipe["learning_rate"], weight_decay=work.recipe["weight_decay"]
        )
        trainer, state, base = il.prepare(
            *(model, self.method, config),
            total_steps=steps,
            loss=partial(sequence_loss, is_regression=False),
            is_called_once=True,
        )
        if is_scanned:
            base = stack_layers(base)
        layout = Layout(make_mesh(None), work.spec.shardings)
        self._stacker, self._base = Stacker(layout, state), layout.place(base)
        self.state = self._stacker.stack(state)
        self._step = jit_step(trainer, layout, self.state, count_tokens)
        self._programs: dict[bool, Any] = {}
        self._batch = jax.device_put(work.numbers())

    def step(self, count: int, *, is_scored: bool) -> Told:
        """Run a number of steps and wait for the last, whose numbers are returned."""
        program = self._program(is_scored)
        for _ in range(count):
            self.state, info = program(self.state, self._base, self._batch)
        return jax.block_until_ready(info)

    def open_slots(self, rank: int) -> None:
        """Set the number of active slots of every module, without a reserve."""
        state = self._stacker.unstack(self.state)
        slots = {name: init_slots(own.active.size, rank) for name, own in state.slots.items()}
        self.state = self._stacker.stack(state._replace(slots=jax.tree.map(jnp.copy, slots)))

    def program(self, *, is_scored: bool) -> str:
        """Return the compiled step as text."""
        return self._program(is_scored).as_text()

    def _program(self, is_scored: bool) -> Any:
        """Compile the step, then free memory as the training loop does."""
        if is_scored not in self._programs:
            arguments = (self.state, self._base, self._batch)
            lowered = self._step.lower(*arguments, is_scored=is_scored)
            self._programs[is_scored] = lowered.compile()
            il.return_freed_memory()
        return self._programs[is_scored]


def increlora(work: Work, max_rank: str = "auto", *, is_scanned: bool = False) -> Training:
    """Return growth by the recipe, with every module already at the final rank."""
    make, growth = partial(il.increlora, steps=work.steps), work.growth(max_rank=max_rank)
    training = Training(work, make, growth, work.steps, is_scanned=is_scanned)
    training.open_slots(work.rank)
    return training


def lora(work: Work) -> Training:
    """Return LoRA with the final rank from the start."""
    return Training(work, il.lora, work.growth(), work.steps)


def run_increlora(
    work: Work, *, is_scored: bool, max_rank: str = "auto", is_scanned: bool = False
) -> Run:
    """Return a function that runs steps of one kind.

    Args:
        work: The work.
        is_scored: Whether the steps are scored.
        max_rank: Slots of a buffer.
        is_scanned: Whether layers are scanned.
    """
    training = increlora(work, max_rank, is_scanned=is_scanned)
    return partial(training.step, is_scored=is_scored)


def run_lora(work: Work) -> Run:
    """Return a function that runs LoRA's steps."""
    return partial(lora(work).step, is_scored=False)


def run_whole_schedule(work: Work) -> Run:
    """Run a whole run in few steps (see `compress`), grown and scored as planned.

    Two untimed steps come before, one of each kind.
    """
    growth, steps = compress(work)
    training = Training(work, partial(il.increlora, steps=steps), growth, steps)
    start = jax.tree.map(jnp.copy, training.state)
    kinds = [True, False, *scored_steps(work, growth, steps, lag=0)]
    done = 0

    def run(count: int) -> Told:
        nonlocal done
        for _ in range(count):
            if done == 2:
                training.state = start
            info = training.step(1, is_scored=kinds[done])
            done += 1
        return info | {"rank_budget": training.method.rank_budget}

    return run


def _load(work: Work) -> nnx.Module:
    dtype = jnp.dtype(work.dtype)
    assert work.folder
    return load_model(work.folder, num_labels=2, dtype=dtype, param_dtype=dtype)[0]


def _draw(work: Work) -> nnx.Module:
    """Draw random weights in one compiled program, so that none exists twice."""
    dtype = jnp.dtype(work.dtype)
    build = partial(work.spec.heads["sequence_classification"], work.config, num_labels=2)

    def make(rngs: nnx.Rngs) -> nnx.Module:
        return build(dtype=dtype, param_dtype=dtype, rngs=rngs)

    numbers = jax.jit(lambda key: nnx.state(make(nnx.Rngs(key))))(jax.random.key(0))
    return nnx.merge(nnx.graphdef(nnx.eval_shape(lambda: make(nnx.Rngs(0)))), numbers)
