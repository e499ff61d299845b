"""Fine-tune a model on a task: `python -m increlora_jax.train --task sst2`."""

import json
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from increlora_jax.compilation_cache import use_compilation_cache
from increlora_jax.compose import Plan, Run, plan_run, prepare_run
from increlora_jax.config import RunConfig
from increlora_jax.errors import InputError
from increlora_jax.nn.report import report
from increlora_jax.nn.storage import save_adapter
from increlora_jax.parsing import parse_run, write_run
from increlora_jax.run_folder import (
    ADAPTER,
    BEST_ADAPTER,
    CONFIG,
    METRICS,
    RESULTS,
    fail_clearly,
)
from increlora_jax.training.clock import Clock
from increlora_jax.training.logging import RunLog
from increlora_jax.training.loop import Loop, Outcome, Schedule
from increlora_jax.training.state import TrainState


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; exits with status 2 and a message if the input cannot be used."""
    with fail_clearly():
        train(parse_run(argv))


def train(config: RunConfig) -> dict[str, Any]:
    """Carry a run from its configuration to `results.json`; returns what that file holds."""
    clock = Clock()
    folder = Path(config.output_dir)
    _check_is_free(folder, config)
    use_compilation_cache(config.training.compilation_cache_dir)
    plan = plan_run(config)
    say(f"{config.adapter.method}: {plan.method.description}")
    run = prepare_run(plan)
    _announce(run)
    _make_folder(folder, config)
    with RunLog(folder, plan.total_steps, tensorboard=config.training.tensorboard) as log:
        loop = Loop(
            run.trainer,
            run.evaluator,
            run.batch_at,
            lambda state, is_best: _keep(
                folder / (BEST_ADAPTER if is_best else ADAPTER), run, state
            ),
            _schedule(plan),
            log,
            clock,
        )
        state, outcome = loop.run(run.trainer.init(run.parts, config.training.seed), run.parts.base)
    results = _results(run, state, outcome)
    (folder / RESULTS).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    say(_summary(results, folder))
    return results


def say(message: str) -> None:
    """Tell the user something on the way."""
    sys.stderr.write(message + "\n")


def _check_is_free(folder: Path, config: RunConfig) -> None:
    held = [n for n in (RESULTS, CONFIG, METRICS, ADAPTER) if (folder / n).exists()]
    if folder.is_file():
        raise InputError(f"--output-dir {folder} is a file")
    if held and not config.training.overwrite_output_dir:
        raise InputError(
            f"--output-dir {folder} already holds a run ({', '.join(held)}); choose another "
            "folder or pass --overwrite-output-dir"
        )


def _make_folder(folder: Path, config: RunConfig) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (RESULTS, METRICS, CONFIG):
            (folder / name).unlink(missing_ok=True)
        for name in (ADAPTER, BEST_ADAPTER):
            shutil.rmtree(folder / name, ignore_errors=True)
        write_run(_anchor(config), folder / CONFIG)
    except OSError as error:
        raise InputError(f"--output-dir {folder} cannot be written: {error}") from None


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
        plan.total_steps, training.eval_steps or plan.epoch_steps, training.logging_steps
    )


def _keep(folder: Path, run: Run, state: TrainState) -> None:
    plan = run.plan
    parts = run.trainer.parts(state, run.parts.base)
    described = {
        "method": plan.method.name,
        "base_model": plan.config.task.model,
        "task": plan.data.task.name,
        "labels": plan.data.task.labels,
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
        "trainable_parameters": {
            "active": counts.active,
            "buffer": counts.buffer,
            "head": counts.head,
        },
        "step_compilations": outcome.step_compilations,
        "seconds": round(outcome.seconds, 3),
        "seconds_to_first_step": round(outcome.seconds_to_first_step, 3),
        "train_tokens_per_second": round(outcome.tokens_per_second, 1),
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
