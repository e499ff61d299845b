"""Fine-tune a model on a task: `python -m increlora_jax.train --task sst2`."""

import logging
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from increlora_jax.compilation_cache import use_compilation_cache
from increlora_jax.compose import Plan, Run, plan_run, prepare_run
from increlora_jax.config import RunConfig
from increlora_jax.errors import InputError
from increlora_jax.nn.parts import Parts
from increlora_jax.nn.report import report
from increlora_jax.nn.storage import save_adapter
from increlora_jax.parsing import parse_run
from increlora_jax.run_folder import (
    ADAPTER,
    BEST_ADAPTER,
    CHECKPOINTS,
    RESULTS,
    Held,
    check_identity,
    clear,
    fail_clearly,
    locked,
    look_into,
    read_results,
    write_results,
)
from increlora_jax.training.checkpoint import Checkpoints, Keep
from increlora_jax.training.clock import Clock
from increlora_jax.training.logging import RunLog
from increlora_jax.training.loop import Loop, Outcome, Schedule
from increlora_jax.training.preemption import Stop
from increlora_jax.training.processes import by_first, is_first, joined
from increlora_jax.training.progress import Progress
from increlora_jax.training.state import TrainState


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; what ends it early is said in a line (see `fail_clearly`)."""
    for name in ("absl", "asyncio"):  # what Orbax logs of a failed write is raised, and said once
        logging.getLogger(name).setLevel(logging.CRITICAL)
    stop = Stop()
    with fail_clearly(), stop.listening():
        train(parse_run(argv), stop)


def train(config: RunConfig, stop: Stop | None = None) -> dict[str, Any]:
    """Carry a run from its configuration, or from where it stopped, to `results.json`.

    Returns:
        What that file holds.
    """
    with joined(config.training.distributed):
        return _train(_anchor(config), stop or Stop())


def _train(config: RunConfig, stop: Stop) -> dict[str, Any]:
    clock = Clock()
    folder = Path(config.output_dir)
    held = Held(by_first(lambda: look_into(folder, config).value))
    use_compilation_cache(config.training.compilation_cache_dir)
    plan = plan_run(config)
    if held is Held.FINISHED:
        return _tell_again(folder, plan)
    say(f"{config.adapter.method}: {plan.method.description}")
    run = prepare_run(plan)
    _announce(run)
    with _claimed(folder, config, held):
        results = _carry_out(run, folder, held, clock, stop)
    say(_summary(results, folder))
    return results


@contextmanager
def _claimed(folder: Path, config: RunConfig, held: Held) -> Iterator[None]:
    """Keep other runs out of the folder; the first process does, for all of this one."""
    with ExitStack() as stack:

        def claim() -> None:
            stack.enter_context(locked(folder))
            if look_into(folder, config) is not held:
                raise InputError(f"--output-dir {folder}: another process has used it meanwhile")

        by_first(claim)
        yield


def _carry_out(run: Run, folder: Path, held: Held, clock: Clock, stop: Stop) -> dict[str, Any]:
    plan = run.plan
    training = plan.config.training
    keep = Keep(training.save_total_limit, training.keep_period)
    checkpoints = Checkpoints(folder / CHECKPOINTS, keep, plan.identity)
    state, progress = _start(run, folder, held, checkpoints)
    log = RunLog(
        folder,
        plan.total_steps,
        tensorboard=training.tensorboard,
        step=progress.step,
        kept_bytes=progress.log_bytes,
        is_silent=not is_first(),
    )
    with log, checkpoints:
        loop = Loop(
            run.trainer,
            plan.layout,
            run.evaluator,
            run.batch_at,
            lambda state, is_best: _keep(
                folder / (BEST_ADAPTER if is_best else ADAPTER), run, state
            ),
            _schedule(plan),
            checkpoints,
            log,
            clock,
            stop,
        )
        state, outcome = loop.run(state, run.parts.base, progress)
    results = _results(run, state, outcome)
    if is_first():
        write_results(folder, results)
    return results


def _start(
    run: Run, folder: Path, held: Held, checkpoints: Checkpoints
) -> tuple[TrainState, Progress]:
    """The state and progress to begin with: of the newest sound checkpoint, or new ones."""
    config = run.plan.config
    state = run.first_state()
    step = None
    if held is Held.BEGUN:
        step, notes = checkpoints.newest()
        for note in notes:
            say(f"note: {note}")
    if step is None:
        if held is Held.BEGUN:
            say(f"{folder} holds this run, but no checkpoint yet: it begins anew")
        by_first(lambda: clear(folder, config))
        return state, Progress()
    saved = checkpoints.read(step)
    check_identity(f"the run in --output-dir {folder}", saved.identity, run.plan.identity)
    say(f"going on from the checkpoint of step {step}")
    return checkpoints.restore(step, state), saved.progress


def _tell_again(folder: Path, plan: Plan) -> dict[str, Any]:
    results = read_results(folder)
    check_identity(f"the run in --output-dir {folder}", results["identity"], plan.identity)
    say(f"this run is finished: {_summary(results, folder)}")
    return results


def say(message: str) -> None:
    """Tell the user something on the way; once, however many processes there are."""
    if is_first():
        sys.stderr.write(message + "\n")


def _anchor(config: RunConfig) -> RunConfig:
    """Make local paths absolute, so that the run can be evaluated from anywhere."""
    task = config.task
    model = str(Path(task.model).resolve()) if Path(task.model).is_dir() else task.model
    data_dir = str(Path(task.data_dir).resolve()) if task.data_dir else None
    return replace(config, task=replace(task, model=model, data_dir=data_dir))


def _announce(run: Run) -> None:
    data = run.plan.data
    for note in (*data.notes, *run.notes):
        say(f"note: {note}")
    cut = {"train": run.encoded_train, **run.encoded_dev}
    for name, encoded in cut.items():
        if encoded.n_truncated:
            length = run.plan.config.task.max_seq_length
            say(f"note: {encoded.n_truncated} of {len(encoded)} {name} examples cut to {length}")
    say(report(run.parts).describe())


def _schedule(plan: Plan) -> Schedule:
    training = plan.config.training
    return Schedule(
        plan.total_steps,
        training.eval_steps or plan.epoch_steps,
        training.logging_steps,
        training.save_steps,
        training.max_skipped_steps,
    )


def _keep(folder: Path, run: Run, state: TrainState) -> None:
    plan = run.plan
    learned = plan.layout.make_readable((state.params, state.slots))
    if not is_first():
        return
    params, slots = learned
    parts = Parts(params.adapter, slots, params.head, run.parts.base)
    described = {
        "method": plan.method.name,
        "base_model": plan.config.task.model,
        "quantize_base": plan.config.task.quantize_base,
        "task": plan.data.task.name,
        "labels": plan.data.task.labels,
        "identity": plan.identity,
        "step": int(state.step),
        "total_steps": plan.total_steps,
        "lora_alpha": plan.config.adapter.lora_alpha,
        "scaling": plan.config.adapter.scaling,
        "ranks": report(parts).ranks,
    }
    save_adapter(folder, parts, described)


def _results(run: Run, state: TrainState, outcome: Outcome) -> dict[str, Any]:
    plan, counts = run.plan, report(run.trainer.parts(state, run.parts.base))
    return {
        "task": plan.data.task.name,
        "method": plan.method.name,
        "model": plan.config.task.model,
        "metrics": outcome.metrics,
        "best_metrics": outcome.best_metrics,
        "steps": int(state.step),
        "rank_budget": plan.method.rank_budget,
        "total_rank": counts.total_rank,
        "ranks": counts.ranks,
        "full_modules": list(counts.full),
        "rounds": {str(step): growth for step, growth in outcome.rounds.items()},
        "skipped_steps": outcome.skipped,
        "trainable_parameters": {
            "active": counts.active,
            "buffer": counts.buffer,
            "head": counts.head,
        },
        "mesh": dict(plan.layout.mesh.shape),
        "step_compilations": outcome.step_compilations,
        "seconds": round(outcome.seconds, 3),
        "seconds_to_first_step": round(outcome.seconds_to_first_step, 3),
        "train_tokens_per_second": round(outcome.tokens_per_second, 1),
        "identity": plan.identity,
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    packages = ("increlora_jax", "jax", "flax", "optax", "transformers")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def _summary(results: dict[str, Any], folder: Path) -> str:
    metrics = ", ".join(f"{name} {value:.4f}" for name, value in results["metrics"].items())
    ranks = ""
    if results["rank_budget"] is not None:
        ranks = f"; total rank {results['total_rank']} of {results['rank_budget']}"
    full = results["full_modules"] if results["rank_budget"] else []
    full_note = f"; full: {', '.join(full)}" if full else ""
    return f"{metrics}{ranks}{full_note}; {results['seconds']:.0f} s; see {folder / RESULTS}"


if __name__ == "__main__":
    main()
