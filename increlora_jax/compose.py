"""From a configuration to everything a run needs; what `train` and `evaluate` share."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from increlora_jax.config import LARGEST, RunConfig, TrainingConfig
from increlora_jax.errors import InputError
from increlora_jax.methods.base import Method
from increlora_jax.methods.registry import build_method
from increlora_jax.models.hf import name_variables, read_config
from increlora_jax.models.hub import resolve_model
from increlora_jax.models.identity import identify_model, identify_tokenizer
from increlora_jax.models.registry import (
    abstract_model,
    find_spec,
    load_model,
    load_tokenizer,
)
from increlora_jax.models.remat import set_remat
from increlora_jax.nn.parts import Parts, Skeleton, split
from increlora_jax.quantization import QuantizedKernel
from increlora_jax.tasks.base import TaskData
from increlora_jax.tasks.batching import batch_at, length_buckets, steps_per_epoch
from increlora_jax.tasks.encoding import Encoded, encode
from increlora_jax.tasks.registry import load_task
from increlora_jax.training.evaluation import Evaluator
from increlora_jax.training.loss import sequence_loss
from increlora_jax.training.sharding import Axes, Layout, make_mesh
from increlora_jax.training.state import TrainState
from increlora_jax.training.step import Trainer, build_trainer


@dataclass(frozen=True, eq=False)
class Plan:
    """What is known of a run before weights are loaded: its data, its steps, its growth."""

    config: RunConfig
    data: TaskData
    folder: Path
    total_steps: int
    epoch_steps: int
    method: Method
    layout: Layout

    @cached_property
    def identity(self) -> dict[str, str]:
        """What a run was made of, by content."""
        return {
            "base model": identify_model(self.folder),
            "tokenizer": identify_tokenizer(self.folder),
            "task": self.data.task.name,
            "labels": json.dumps(self.data.task.labels),
            "data": self.data.identify(),
        }


@dataclass(frozen=True, eq=False)
class Run:
    """A run made ready: model taken apart, its base on the devices, data encoded."""

    plan: Plan
    trainer: Trainer
    parts: Parts
    encoded_dev: dict[str, Encoded]
    notes: tuple[str, ...]
    tokenizer: Any

    @property
    def buckets(self) -> tuple[int, ...]:
        """The lengths batches are padded to."""
        return length_buckets(self.plan.config.task.max_seq_length)

    @cached_property
    def encoded_train(self) -> Encoded:
        """The training split as token ids."""
        length = self.plan.config.task.max_seq_length
        return encode(self.plan.data.train, self.tokenizer, length)

    @cached_property
    def evaluator(self) -> Evaluator:
        """Scores a state on dev."""
        return Evaluator(
            self.trainer,
            self.plan.layout,
            self.plan.data,
            self.encoded_dev,
            batch_size=self.plan.config.training.eval_batch_size,
            buckets=self.buckets,
        )

    def first_state(self, parts: Parts | None = None) -> TrainState:
        """The state before step 0, on the devices; of other adapters than the new ones if given."""
        state = self.trainer.init(parts or self.parts, self.plan.config.training.seed)
        return self.plan.layout.place(state)

    def batch_at(self, step: int) -> dict[str, np.ndarray]:
        """Make the rows of an optimizer step's batch that fall to this process.

        Under accumulation there is an axis of micro-batches before that of the rows.
        """
        training = self.plan.config.training
        accumulation = training.gradient_accumulation_steps
        size = training.train_batch_size
        rows = np.arange(size * accumulation).reshape(accumulation, size)
        batch = batch_at(
            self.encoded_train,
            seed=training.seed,
            step=step,
            batch_size=size * accumulation,
            buckets=self.buckets,
            rows=rows[:, self.plan.layout.own_rows(size)].reshape(-1),
        )
        if accumulation == 1:
            return batch
        return {k: v.reshape(accumulation, -1, *v.shape[1:]) for k, v in batch.items()}


def plan_run(config: RunConfig, total_steps: int | None = None) -> Plan:
    """Read data and the model's configuration, and lay out the run; no weights are loaded.

    `total_steps` is given for a run that has been planned before.

    Raises:
        InputError: whatever of the configuration cannot be done, and what to change.
    """
    task = config.task
    data = load_task(task.task, task.data_dir, task.problem_type)
    training = config.training
    batch = training.train_batch_size * training.gradient_accumulation_steps
    epoch_steps = steps_per_epoch(len(data.train), batch)
    steps = total_steps or training.max_steps or ceil(training.num_train_epochs * epoch_steps)
    if steps > LARGEST:
        raise InputError(
            f"--num-train-epochs {training.num_train_epochs} makes {steps} steps, and {LARGEST} "
            "can be counted; choose less, or --max-steps"
        )
    folder = resolve_model(task.model)
    model_config = read_config(folder)
    spec = find_spec(model_config)
    model = abstract_model(
        model_config, num_labels=data.task.num_labels, quantize=task.quantize_base
    )
    method = build_method(
        model,
        config.adapter,
        config.growth,
        steps=steps,
        default_targets=spec.target_modules,
        default_modules_to_save=list(spec.modules_to_save),
    )
    _check_frozen(model, method)
    layout = _lay_out(model, spec.shardings, training)
    return Plan(config, data, folder, steps, epoch_steps, method, layout)


def _check_frozen(model: nnx.Module, method: Method) -> None:
    """See that nothing is trained that is quantised."""
    for path, parameter in name_variables(model, nnx.Param).items():
        if isinstance(parameter.get_value(), QuantizedKernel) and method.is_trained(path):
            raise InputError(
                f"--quantize-base is for what stays as it is, and {path} would be trained in full; "
                "choose another --method than full, or other --modules-to-save"
            )


def _lay_out(model: nnx.Module, rules: Mapping[str, Axes], training: TrainingConfig) -> Layout:
    """Make the layout, and see that the model and the batches can be divided by it."""
    layout = Layout(make_mesh(training.mesh), rules)
    layout.check_rows("--train-batch-size", training.train_batch_size)
    layout.check_rows("--eval-batch-size", training.eval_batch_size)
    parameters = name_variables(model, nnx.Param)
    layout.shardings({path: variable.get_value() for path, variable in parameters.items()})
    return layout


def prepare_run(plan: Plan) -> Run:
    """Load tokenizer and weights, encode dev, attach the method, build the trainer."""
    config = plan.config
    tokenizer = load_tokenizer(plan.folder)
    length = config.task.max_seq_length
    encoded = {name: encode(dev, tokenizer, length) for name, dev in plan.data.dev.items()}
    with plan.layout.loading():
        skeleton, parts, notes = _load_parts(plan)
    parts = parts._replace(base=plan.layout.place(parts.base))
    trainer = build_trainer(
        skeleton,
        plan.method,
        sequence_loss(plan.data.task.is_regression),
        config.training,
        total_steps=plan.total_steps,
    )
    return Run(plan, trainer, parts, encoded, notes, tokenizer)


def _load_parts(plan: Plan) -> tuple[Skeleton, Parts, tuple[str, ...]]:
    config = plan.config
    dtype = jnp.dtype(config.task.dtype)
    model, report = load_model(
        plan.folder,
        num_labels=plan.data.task.num_labels,
        dtype=dtype,
        param_dtype=dtype,
        quantize=config.task.quantize_base,
        seed=config.training.seed,
        classifier_dropout=config.task.cls_dropout,
    )
    set_remat(model, config.training.remat)
    plan.method.attach(model, nnx.Rngs(config.training.seed))
    skeleton, parts = split(model, plan.method.is_trained)
    notes = []
    if report.new_parameters:
        notes.append(f"new, not in the model's files: {', '.join(report.new_parameters)}")
    if report.ignored_keys:
        notes.append(f"in the model's files, not used: {', '.join(report.ignored_keys)}")
    return skeleton, parts, tuple(notes)
