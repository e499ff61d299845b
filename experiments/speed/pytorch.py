"""Contenders in PyTorch: PEFT's adapters on transformers' model, trained as in PEFT's examples."""

import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from work import Work

Run = Callable[[int], dict[str, Any]]


class Training:
    """A plain loop around a model; methods use its two hooks.

    `add_loss()` returns a term of the loss; `after_backward(step)` sees the gradients.
    """

    def __init__(
        self,
        work: Work,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        add_loss: Callable[[], torch.Tensor] | None = None,
        after_backward: Callable[[int], None] | None = None,
        after_step: Callable[[int], None] | None = None,
        is_compiled: bool = False,
    ):
        model.train()
        self._forward = torch.compile(model) if is_compiled else model
        self._optimizer = optimizer
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 - t / work.steps)
        self._add_loss = add_loss
        self._after_backward, self._after_step = after_backward, after_step
        self._batch = _batch(work)
        self._done = 0

    def run(self, count: int) -> dict[str, Any]:
        """Run a number of steps and wait for the last."""
        for _ in range(count):
            self._train()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return {}

    def _train(self) -> None:
        loss = self._forward(**self._batch).loss
        (loss + self._add_loss() if self._add_loss else loss).backward()
        if self._after_backward:
            self._after_backward(self._done)
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self._rate.step()
        if self._after_step:
            self._after_step(self._done)
        self._optimizer.zero_grad()
        self._done += 1


def run_peft_lora(work: Work, *, attention: str = "sdpa", is_compiled: bool = False) -> Run:
    """Return a function that runs PEFT's LoRA with the final rank."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=work.rank, **_shared(work))
    model = get_peft_model(load_base(work, attention), config)
    return Training(work, model, _adamw(work, model), is_compiled=is_compiled).run


def run_peft_adalora(work: Work, *, is_compiled: bool = False) -> Run:
    """Return a function that runs PEFT's AdaLoRA, from 3/2 of the final rank down to it.

    PEFT's defaults are 12 and 8. The first steps are measured, which score and do not mask yet:
    this favours AdaLoRA.
    """
    from peft import AdaLoraConfig, get_peft_model

    plan = {"init_r": work.rank * 3 // 2, "target_r": work.rank, "total_step": work.steps}
    config = AdaLoraConfig(tinit=work.steps // 10, tfinal=work.steps // 2, **plan, **_shared(work))
    model = get_peft_model(load_base(work, "sdpa"), config)
    allocate = model.base_model.update_and_allocate
    optimizer = _adamw(work, model)
    return Training(work, model, optimizer, after_step=allocate, is_compiled=is_compiled).run


def load_base(work: Work, attention: str) -> nn.Module:
    """Create transformers' classifier, on the GPU if there is one.

    `attention` is its implementation, if it has several. Of `--remat` it supports recomputing whole
    layers.
    """
    from transformers import AutoModelForSequenceClassification as Auto

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    has_it = Auto._model_mapping[type(work.config)]._supports_sdpa
    options = {
        "dtype": getattr(torch, work.dtype),
        "attn_implementation": attention if has_it else "eager",
    }
    with torch.device(device()):
        if work.folder:
            model = Auto.from_pretrained(work.folder, **options)
        else:
            model = Auto.from_config(work.config, **options)
    if work.remat != "none":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def device() -> str:
    """Return the device of the training."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _shared(work: Work) -> dict[str, Any]:
    return {
        "task_type": "SEQ_CLS",
        "target_modules": list(work.sizes),
        "modules_to_save": list(work.spec.modules_to_save["sequence_classification"]),
        "lora_alpha": 16,
        "lora_dropout": work.lora_dropout,
    }


def _adamw(work: Work, model: nn.Module) -> torch.optim.Optimizer:
    """Return the fused AdamW, the default of transformers' Trainer and the fastest one."""
    learned: Iterable[nn.Parameter] = (p for p in model.parameters() if p.requires_grad)
    row = work.recipe
    return torch.optim.AdamW(
        learned, lr=row["learning_rate"], weight_decay=row["weight_decay"], fused=True
    )


def _batch(work: Work) -> dict[str, torch.Tensor]:
    names = ("input_ids", "attention_mask", "labels")
    numbers = work.numbers()
    return {name: torch.from_numpy(numbers[name]).long().to(device()) for name in names}
