"""Description of a run before weights are loaded: data, steps, growth and memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from increlora_jax.config import RunConfig
from increlora_jax.models.registry import abstract_model
from increlora_jax.nn.attach import adapters_of
from increlora_jax.nn.report import report
from increlora_jax.nn.skeleton import Parts
from increlora_jax.run.build import Plan, plan_run
from increlora_jax.run.folder import CHECKPOINTS, Held, check_saved, look_into, read_finished
from increlora_jax.run.recipes import FOLLOWS_LENGTH
from increlora_jax.runtime.processes import joined
from increlora_jax.training.checkpoint import find_sound, read_saved
from increlora_jax.training.trackers import check_trackers
from increlora_jax.values import flag_of
from increlora_jax.weights.folder import name_variables, read_config


def describe_dry_run(config: RunConfig) -> str:
    """Return the lines of `--dry-run`, from the data and the model's configuration.

    Raises:
        InputError: If the run could not start.
    """
    check_trackers(config.training.report_to or ())
    with joined(config.training.distributed):
        plan = plan_run(config)
        folder = Path(config.output_dir)
        fate = _find_fate(folder, plan)
        chosen = [f"note: {note}" for note in describe_chosen(config, plan)]
        lines = [*_describe_data(plan), *_describe_work(plan), *chosen, *_describe_memory(plan)]
        return "\n".join([*lines, f"folder: {folder}: {fate}", "dry run: nothing was written"])


def describe_chosen(asked: RunConfig, plan: Plan) -> list[str]:
    """Return one line with the values chosen for settings that follow the run's length, if any."""
    before, after = asked.flat(), plan.config.flat()
    names = (name for name in FOLLOWS_LENGTH if after[name] not in (before[name], "auto"))
    flags = " ".join(f"{flag_of(name)} {after[name]}" for name in names)
    return [f"chosen for a run of {plan.total_steps} steps: {flags}"] if flags else []


def _find_fate(folder: Path, plan: Plan) -> str:
    """Describe the state of the run's folder; raise where the run would."""
    held = look_into(folder, plan.config)
    if held is Held.NOTHING:
        return "a new run starts"
    if held is Held.FINISHED:
        read_finished(folder, plan.identity)
        return "holds this run, which is finished: its results are printed again"
    checkpoint = find_sound(folder / CHECKPOINTS)
    if checkpoint is None:
        return "holds this run, but no checkpoint yet: it starts over"
    check_saved(folder, read_saved(checkpoint), plan.identity, len(plan.members))
    return f"holds this run, which resumes from the checkpoint of step {checkpoint.name}"


def _describe_data(plan: Plan) -> Iterator[str]:
    kind = plan.data.kind
    yield f"task: {kind.task}, judged by {', '.join(kind.metrics)}"
    yield from (f"note: {note}" for note in (*plan.data.notes, *plan.notes))


def _describe_work(plan: Plan) -> Iterator[str]:
    training, timetable = plan.config.training, plan.timetable
    yield f"model: {plan.config.task.model}"
    yield f"{plan.method.name}: {plan.method.description}"
    yield (
        f"steps: {plan.total_steps}, of {training.train_batch_size} × "
        f"{training.gradient_accumulation_steps} examples; an epoch is {plan.epoch_steps}; "
        f"evaluation every {timetable.eval_steps}, checkpoint every {training.save_steps}"
    )
    if len(plan.members) > 1:
        names = ", ".join(member.name for member in plan.members)
        yield f"{len(plan.members)} runs train together: {names}"


def _describe_memory(plan: Plan) -> Iterator[str]:
    parts, runs = _lay_out(plan), len(plan.members)
    base = _count_bytes(parts.base)
    trained = runs * _count_bytes((parts.adapters, parts.head))
    yield report(parts).describe()
    yield (
        f"memory: base {_say_bytes(base)}; trained parameters {_say_bytes(trained)}, their "
        f"gradients as much, the optimizer twice as much; in all {_say_bytes(base + 4 * trained)}, "
        "without activations, batches and the memory of compiled programs"
    )


def _lay_out(plan: Plan) -> Parts:
    """Return the model's parts, with shapes in place of the weights that a file holds."""
    task, method = plan.config.task, plan.method
    dtype = jnp.dtype(task.dtype)
    model = abstract_model(
        read_config(plan.folder),
        head=plan.data.kind.head,
        quantize=task.quantize_base,
        dtype=dtype,
        param_dtype=dtype,
        **plan.data.kind.head_options,
    )
    values = {path: v.get_value() for path, v in name_variables(model, nnx.Param).items()}
    learned = {path: value for path, value in values.items() if method.is_trained(path)}
    wide = jnp.promote_types(dtype, jnp.float32)  # parameters trained in full have this dtype
    head: Any = {path: jax.ShapeDtypeStruct(value.shape, wide) for path, value in learned.items()}
    base = {path: value for path, value in values.items() if path not in head}
    adapters = adapters_of(method.attach(model, nnx.Rngs(0)))
    return Parts(
        {path: adapter.parameters for path, adapter in adapters.items()},
        {path: adapter.slots for path, adapter in adapters.items()},
        head,
        base,
    )


def _count_bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _say_bytes(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"
