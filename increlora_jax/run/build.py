"""Plan and preparation of a run from its configuration, for `train` and `evaluate`."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from increlora_jax.config import RunConfig, TaskConfig, TrainingConfig
from increlora_jax.core.stacking import Groups
from increlora_jax.errors import InputError
from increlora_jax.methods.base import Method
from increlora_jax.methods.table import METHODS
from increlora_jax.models.fused_attention import check_fused, set_attention
from increlora_jax.models.layer_loop import set_scanned
from increlora_jax.models.registry import (
    abstract_model,
    draw_parameters,
    find_spec,
    load_model,
)
from increlora_jax.models.repeated_layer import layer_parameters, set_places, set_remat
from increlora_jax.models.spec import ModelSpec
from increlora_jax.nn.attach import adapters_of
from increlora_jax.nn.bottleneck import BOTTLENECK
from increlora_jax.nn.dora import MAGNITUDE
from increlora_jax.nn.skeleton import Parts, Skeleton, split
from increlora_jax.run.budget import check_frozen, default_places, match_budget, method_builder
from increlora_jax.run.lengths import fit_length, note_tokenizer
from increlora_jax.run.packing import check_packing
from increlora_jax.run.rank_pattern import resolve_pattern
from increlora_jax.run.start import Start, begin_from, read_start
from increlora_jax.run.steps import count_steps, settle
from increlora_jax.run.sweep import Member, members_of, swept_names
from increlora_jax.run.token_cache import encode_or_load, identify_encoding
from increlora_jax.tasks.batching import length_buckets
from increlora_jax.tasks.best_metric import choose_metric
from increlora_jax.tasks.kind import Encoded, Kind, TaskData, identify
from increlora_jax.tasks.registry import load_task
from increlora_jax.training.batches import PROGRAM_COST, Batches
from increlora_jax.training.evaluation import Evaluator
from increlora_jax.training.prepare import build_trainer
from increlora_jax.training.sharding import Axes, Layout, make_mesh
from increlora_jax.training.state import TrainState
from increlora_jax.training.step import Trainer
from increlora_jax.training.timetable import Timetable
from increlora_jax.training.together import join, members
from increlora_jax.weights.folder import LoadReport, name_variables, read_config
from increlora_jax.weights.hub import resolve_model
from increlora_jax.weights.identity import identify_model, identify_tokenizer
from increlora_jax.weights.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig


ADDED: Mapping[str, Axes] = {rf".*\.({BOTTLENECK}\..+|{MAGNITUDE})": ()}
"""Rule for the parameters that methods add to a model: every device has them whole."""


@dataclass(frozen=True, eq=False)
class Plan:
    """A run before its weights are loaded: data, steps and growth."""

    config: RunConfig
    members: tuple[Member, ...]  # the runs that train together; a single run is `config` itself
    data: TaskData
    folder: Path
    total_steps: int
    epoch_steps: int
    methods: tuple[Method, ...]  # of each member; they differ in numbers only
    layout: Layout
    can_pack: bool  # whether examples may share a row
    notes: tuple[str, ...] = ()
    encoded: Mapping[str, Encoded] = field(default_factory=dict)  # filled if rows had to be counted
    matches_labels: bool = True  # whether the saved head is matched by label names
    start: Start | None = None  # the updates and head it begins with

    @property
    def method(self) -> Method:
        """Method of all members; only numbers of its settings differ between members."""
        return self.methods[0]

    @property
    def timetable(self) -> Timetable:
        """Intervals of the run."""
        training = self.config.training
        return Timetable(
            self.total_steps,
            training.eval_steps or self.epoch_steps,
            training.logging_steps,
            training.save_steps,
            training.max_skipped_steps,
            training.steps_per_execution,
            training.early_stopping_patience,
            training.early_stopping_threshold,
        )

    def encode(self, name: str, tokenizer: Any) -> Encoded:
        """Return a split as rows of numbers."""
        if name in self.encoded:
            return self.encoded[name]
        return _encode(self.data, self.folder, self.config.task, name, tokenizer)

    @cached_property
    def identity(self) -> dict[str, str]:
        """Identities, by content, of everything the run is created with."""
        return {
            "base model": identify_model(self.folder),
            "tokenizer": identify_tokenizer(self.folder),
            "task": self.data.kind.task,
            "labels": json.dumps(self.data.kind.labels),
            "data": identify(*self.data.splits.values()),
            **({"init adapter": self.start.identity} if self.start else {}),
        }

    @cached_property
    def dev_identity(self) -> dict[str, str]:
        """Identity of the content of each dev split."""
        return {name: identify(split) for name, split in self.data.dev.items()}


@dataclass(frozen=True, eq=False)
class Run:
    """Runs ready to train: model split into parts, base on the devices, data encoded."""

    plan: Plan
    trainer: Trainer
    starts: tuple[Parts, ...]  # the start of each run; all share one base
    encoded_dev: dict[str, Encoded]
    notes: tuple[str, ...]
    tokenizer: Any

    @property
    def parts(self) -> Parts:
        """Model before the first step; of several runs, that of the first."""
        return self.starts[0]

    @property
    def buckets(self) -> tuple[int, ...]:
        """Lengths that batches are padded to."""
        task = self.plan.config.task
        longest = task.max_seq_length
        return (longest,) if task.pad_to_max_length else length_buckets(longest)

    @cached_property
    def encoded_train(self) -> Encoded:
        """Training split as token ids."""
        return self.plan.encode("train", self.tokenizer)

    @cached_property
    def evaluator(self) -> Evaluator:
        """Evaluator of a state on the dev splits."""
        return Evaluator(
            self.trainer,
            self.plan.layout,
            self.plan.data,
            self.encoded_dev,
            batch_size=self.plan.config.training.eval_batch_size,
            **self._batching,
        )

    def first_state(self, *starts: Parts) -> TrainState:
        """Return the state before step 0, on the devices; `parts` replaces the new adapters."""
        pairs = zip(starts or self.starts, self.plan.members, strict=True)
        states = [
            self.trainer.init(parts, member.config.training.seed, member.settings)
            for parts, member in pairs
        ]
        state = join(states)
        return self.plan.layout.place(state, len(members(state)))

    @cached_property
    def batch_at(self) -> Batches:
        """Function that builds the training batch of a step."""
        training = self.plan.config.training
        return Batches(
            self.encoded_train,
            [member.config.training.seed for member in self.plan.members],
            batch_size=training.train_batch_size,
            accumulation=training.gradient_accumulation_steps,
            own_rows=self.plan.layout.own_rows(training.train_batch_size),
            block=self.plan.timetable.block,
            steps=self.plan.total_steps,
            **self._batching,
        )

    @property
    def _batching(self) -> dict[str, Any]:
        """Options for the shapes of batches; by default they are packed where it is worthwhile."""
        task = self.plan.config.task
        is_free = task.packing == "auto"
        is_packed = self.plan.can_pack and not (is_free and task.pad_to_max_length)
        return {
            "buckets": self.buckets,
            "pack": self.plan.data.kind.pack if is_packed else None,
            "is_free": is_free,
            "program_cost": PROGRAM_COST.get(jax.default_backend(), PROGRAM_COST["gpu"]),
        }


def plan_run(
    config: RunConfig,
    total_steps: int | None = None,
    data: TaskData | None = None,
    initial_ranks: Mapping[str, int] | None = None,
) -> Plan:
    """Plan a run, with a sequence length that its model allows; no weights are loaded.

    Args:
        config: All settings.
        total_steps: Steps of a run that was planned before; default: counted from the data.
        data: Data to score instead of the run's own.
        initial_ranks: The ranks that a run planned before began with, of some modules.

    Raises:
        InputError: If the configuration asks for something impossible; the message says what to
            change.
    """
    task, training = config.task, config.training
    data = _judged(data or load_task(task), training)
    folder = resolve_model(task.model, task.model_revision, task.model_subfolder)
    model_config = read_config(folder)
    config, notes = fit_length(config, model_config, may_cut=total_steps is not None)
    encoded = _encode_early(data, folder, config.task)
    epoch_steps, planned = count_steps(training, len(encoded.get("train", data.train or ())))
    steps = total_steps or planned
    spec, model = find_spec(model_config), _abstract(model_config, config, data.kind)
    places = default_places(config.adapter.method, spec, data.kind.head)
    config, picked = match_budget(config, model, places)
    config = replace(settle(resolve_pattern(config), steps), unsaid=frozenset())
    start, more = _read_start(config, folder, model, spec, data.kind)
    build = method_builder(model, places, steps, start.ranks if start else initial_ranks)
    method = build(config)
    config = config.changed(method.chosen)
    check_frozen(model, method)
    layout = _lay_out(model, {**spec.shardings, **ADDED}, training)
    can_pack = check_packing(model, layout, config, data.kind)
    methods = tuple(build(member.config) for member in members_of(config))
    told = config, members_of(config), data, folder, steps, epoch_steps, methods, layout, can_pack
    return Plan(*told, (*notes, *picked, *more), encoded, start=start)


def _judged(data: TaskData, training: TrainingConfig) -> TaskData:
    """Return the data with the metric that adapters are compared by."""
    name, is_greater = training.metric_for_best_model, training.greater_is_better
    return replace(data, kind=choose_metric(data.kind, name, is_greater))


def _abstract(model_config: "PretrainedConfig", config: RunConfig, kind: Kind) -> nnx.Module:
    quantize = config.task.quantize_base
    return abstract_model(model_config, head=kind.head, quantize=quantize, **kind.head_options)


def _read_start(
    config: RunConfig, folder: Path, model: nnx.Module, spec: ModelSpec, kind: Kind
) -> tuple[Start | None, tuple[str, ...]]:
    """Read the adapter that the run begins with, if the user names one, and return a note."""
    adapter = config.adapter
    if adapter.init_adapter is None:
        if adapter.ignore_head:
            raise InputError("--ignore-head is for --init-adapter. Leave it out")
        return None, ()
    if "lora_alpha" in swept_names(config.training.seeds, config.training.sweep):
        raise InputError("--init-adapter keeps its scale, so that --sweep lora_alpha is not for it")
    if adapter.method in METHODS and not METHODS[adapter.method].has_adapters:
        raise InputError(
            f"--init-adapter is for methods with adapters, and --method is {adapter.method}"
        )
    start = read_start(
        Path(adapter.init_adapter).expanduser(),
        model,
        spec.weights,
        {"base model": identify_model(folder), "labels": json.dumps(kind.labels)},
        ignore_head=adapter.ignore_head,
    )
    return start, (f"the run {start.describe()}, of {adapter.init_adapter}",)


def _encode_early(data: TaskData, folder: Path, task: TaskConfig) -> dict[str, Encoded]:
    """Encode every split, if the number of rows, and thus of steps, depends on the encoding."""
    if data.kind.is_one_row:
        return {}
    tokenizer = load_tokenizer(folder)
    return {name: _encode(data, folder, task, name, tokenizer) for name in data.splits}


def _encode(data: TaskData, folder: Path, task: TaskConfig, name: str, tokenizer: Any) -> Encoded:
    """Return a split as rows of numbers, from the cache if it has them."""
    split = data.splits[name]
    return encode_or_load(
        identify_encoding(task, identify_tokenizer(folder), split, name),
        lambda: data.kind.encode(split, tokenizer, task.max_seq_length, name),
    )


def _lay_out(model: nnx.Module, rules: Mapping[str, Axes], training: TrainingConfig) -> Layout:
    """Return the layout, after checking that its devices can hold the model and the batches."""
    mesh = make_mesh(training.mesh)
    late = layer_parameters(model) if mesh.shape["fsdp"] > 1 else {}
    layout = Layout(mesh, rules, frozenset(late))
    layout.check_rows("--train-batch-size", training.train_batch_size)
    layout.check_rows("--eval-batch-size", training.eval_batch_size)
    parameters = name_variables(model, nnx.Param)
    layout.shardings({path: variable.get_value() for path, variable in parameters.items()})
    if training.attn_implementation == "pallas":
        check_fused(model, list(layout.mesh.devices.flat))
    return layout


def prepare_run(plan: Plan) -> Run:
    """Load tokenizer and weights, encode dev, attach the method, build the trainer."""
    config = plan.config
    tokenizer = load_tokenizer(plan.folder)
    length = config.task.max_seq_length
    kind = plan.data.kind
    encoded = {name: plan.encode(name, tokenizer) for name in plan.data.dev}
    with plan.layout.loading():
        skeleton, starts, report = load_parts(plan)
    base = starts[0].base
    if config.training.scan_layers:
        base = stack_layers(base)
    base = plan.layout.place(base)
    starts = tuple(parts._replace(base=base) for parts in starts)
    trainer = build_trainer(
        skeleton,
        plan.method,
        kind.loss,
        config.training,
        total_steps=plan.total_steps,
    )
    notes = (*plan.notes, *note_tokenizer(length, tokenizer), *report.describe())
    return Run(plan, trainer, starts, encoded, notes, tokenizer)


def stack_layers(base: dict[str, Any]) -> dict[Any, Any]:
    """Stack each array over all layers, for a loop over layers; empties `base`."""
    kinds = {name: re.sub(r"\.\d+\.", ".#.", name, count=1) for name in base}
    return Groups(base, kinds).stack_away(base)


def load_parts(
    plan: Plan, param_dtype: DTypeLike | None = None
) -> tuple[Skeleton, tuple[Parts, ...], LoadReport]:
    """Load the weights and attach the method.

    Args:
        plan: The plan.
        param_dtype: Dtype of the base; default: that of computation.

    Returns:
        The model without its arrays, the start of each run, and a report of the loading.
    """
    model, report = load_base(plan, param_dtype)
    seeds = [member.config.training.seed for member in plan.members]
    skeleton, parts = adapt(model, plan.method, plan.layout, plan.config.training, seed=seeds[0])
    starts = {seeds[0]: parts}
    for seed in seeds:
        if seed not in starts:
            options = _model_options(plan, param_dtype)
            drawn = draw_parameters(plan.folder, report.new_parameters, seed=seed, **options)
            starts[seed] = _start_again(parts, plan, seed, drawn)
    if plan.start:
        starts = {seed: begin_from(own, plan.start) for seed, own in starts.items()}
    return skeleton, tuple(starts[seed] for seed in seeds), report


def adapt(
    model: nnx.Module, method: Method, layout: Layout, training: TrainingConfig, *, seed: int
) -> tuple[Skeleton, Parts]:
    """Attach a method to a model and take it apart, with the settings of its layers.

    Args:
        model: The base model with its head, which is changed in place.
        method: The method.
        layout: The shardings; the layers gather the parameters of `gathered_late`.
        training: Recomputation, loop over layers and implementation of attention.
        seed: Seed of the adapters.

    Returns:
        The model without its arrays, and the arrays.
    """
    set_remat(model, training.remat)
    if training.scan_layers:
        set_scanned(model)
    set_attention(model, training.attn_implementation)
    method.attach(model, nnx.Rngs(seed))
    own = layer_parameters(model)
    late = {name: own[name] for name in own if name in layout.gathered_late}
    set_places(model, layout.in_use(late))
    return split(model, method.is_trained, is_called_once=True)


def load_base(plan: Plan, param_dtype: DTypeLike | None = None) -> tuple[nnx.Module, LoadReport]:
    """Load the base model with its head, without adapters; see `load_parts`."""
    return load_model(
        plan.folder,
        seed=plan.members[0].config.training.seed,
        quantize=plan.config.task.quantize_base,
        **(plan.data.kind.loading if plan.matches_labels else {}),
        **_model_options(plan, param_dtype),
    )


def _model_options(plan: Plan, param_dtype: DTypeLike | None) -> dict[str, Any]:
    dtype = jnp.dtype(plan.config.task.dtype)
    return {
        **plan.data.kind.head_options,
        "head": plan.data.kind.head,
        "dtype": dtype,
        "param_dtype": param_dtype or dtype,
    }


def _start_again(parts: Parts, plan: Plan, seed: int, drawn: Mapping[str, jax.Array]) -> Parts:
    """Return the start of a run with another seed, over the same base."""
    if frozen := sorted(drawn.keys() - parts.head.keys()):
        raise InputError(
            f"--seeds: {frozen[0]} is frozen but not in the model's files, so that each seed "
            "draws another base. Add its module to --modules-to-save"
        )
    kind = plan.data.kind
    model = abstract_model(read_config(plan.folder), head=kind.head, **kind.head_options)
    attached = plan.method.attach(model, nnx.Rngs(seed))
    added = {name: v.get_value() for name, v in name_variables(attached, nnx.Param).items()}
    added = {n: v for n, v in added.items() if n in parts.head and isinstance(v, jax.Array)}
    new = {name: value.astype(parts.head[name].dtype) for name, value in drawn.items()}
    return parts._replace(
        adapters={path: own.parameters for path, own in adapters_of(attached).items()},
        head={**parts.head, **added, **new},
    )
