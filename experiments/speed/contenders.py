"""Who takes part: each makes a function that does n training steps and waits for the last."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from work import Work

import increlora_jax as il
from increlora_jax.models.registry import find_spec
from increlora_jax.training.loss import sequence_loss

Run = Callable[[int], Any]
STEPS = 10_000
LEARNING_RATE = 1e-3


def _build_ours(work: Work) -> tuple[nnx.Module, list[str], Callable[[str], bool]]:
    spec = find_spec(work.config)
    dtype = jnp.dtype(work.dtype)
    build = spec.heads["sequence_classification"]

    @jax.jit
    def make(key: jax.Array) -> Any:
        model = build(work.config, num_labels=2, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(key))
        return nnx.state(model)

    shapes = nnx.eval_shape(lambda: build(work.config, num_labels=2, dtype=dtype, rngs=nnx.Rngs(0)))
    model = nnx.merge(nnx.graphdef(shapes), make(jax.random.key(0)))
    return model, list(work.sizes), il.parameter_selector(model, spec.modules_to_save)


def _runner(work: Work, model: nnx.Module, method: il.Method, *, is_scored: bool) -> Run:
    config = il.TrainingConfig(learning_rate=LEARNING_RATE)
    trainer, state, base = il.prepare(
        model, method, config, total_steps=STEPS, loss=sequence_loss(is_regression=False)
    )
    step = jax.jit(trainer.step, static_argnames="is_scored", donate_argnames="state")
    batch = jax.device_put(work.numbers())

    def run(count: int) -> None:
        nonlocal state
        for _ in range(count):
            state, info = step(state, base, batch, is_scored=is_scored)
        jax.block_until_ready(info)

    return run


def increlora(work: Work, *, is_scored: bool, max_rank: str = "auto") -> Run:
    """Ours: growth under way, the budget `rank` a module in the mean."""
    model, targets, is_trained = _build_ours(work)
    method = il.increlora(
        model,
        steps=STEPS,
        targets=targets,
        adapter=il.AdapterConfig(),
        growth=il.GrowthConfig(
            target_rank=work.rank,
            max_rank=max_rank,
            top_h=max(1, len(targets) // 8),
            init_warmup=1000,
            incre_interval=100,
        ),
        is_trained=is_trained,
    )
    return _runner(work, model, method, is_scored=is_scored)


def lora(work: Work) -> Run:
    """Ours, of the final rank from the start."""
    model, targets, is_trained = _build_ours(work)
    method = il.lora(
        model,
        targets=targets,
        adapter=il.AdapterConfig(),
        growth=il.GrowthConfig(target_rank=work.rank),
        is_trained=is_trained,
    )
    return _runner(work, model, method, is_scored=False)


def peft(work: Work, kind: str, *, is_compiled: bool = False) -> Run:
    """PEFT's `LoraConfig` or `AdaLoraConfig` in PyTorch, trained as its examples do."""
    import torch
    from peft import AdaLoraConfig, LoraConfig, TaskType, get_peft_model
    from transformers import AutoModelForSequenceClassification

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        model = AutoModelForSequenceClassification.from_config(
            work.config, dtype=getattr(torch, work.dtype)
        )
    shared: dict[str, Any] = {
        "task_type": TaskType.SEQ_CLS,
        "target_modules": list(work.sizes),
        "lora_alpha": 16,
        "lora_dropout": 0.0,
    }
    if kind == "lora":
        model = get_peft_model(model, LoraConfig(r=work.rank, **shared))
    else:
        plan = {"init_r": work.rank * 3 // 2, "target_r": work.rank, "total_step": STEPS}
        model = get_peft_model(model, AdaLoraConfig(tinit=200, tfinal=STEPS // 2, **plan, **shared))
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
    names = ("input_ids", "attention_mask", "labels")
    batch = {
        name: torch.from_numpy(value).long().to(device)
        for name, value in work.numbers().items()
        if name in names
    }
    forward = torch.compile(model) if is_compiled else model
    done = 0

    def run(count: int) -> None:
        nonlocal done
        for _ in range(count):
            forward(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            rate.step()
            if kind == "adalora":
                model.base_model.update_and_allocate(done)
            optimizer.zero_grad()
            done += 1
        if device == "cuda":
            torch.cuda.synchronize()

    return run


CONTENDERS: dict[str, Callable[[Work], Run]] = {
    "increlora, scored step": lambda work: increlora(work, is_scored=True),
    "increlora, unscored step": lambda work: increlora(work, is_scored=False),
    "increlora, unscored, 8 slots": lambda work: increlora(work, is_scored=False, max_rank="8"),
    "increlora, unscored, 32 slots": lambda work: increlora(work, is_scored=False, max_rank="32"),
    "lora": lora,
    "peft lora": lambda work: peft(work, "lora"),
    "peft lora, compiled": lambda work: peft(work, "lora", is_compiled=True),
    "peft adalora": lambda work: peft(work, "adalora"),
}
