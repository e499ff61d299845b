"""Fine-tune a model on a task: `python -m increlora_jax.train --task sst2`."""

if __name__ == "__main__":  # before the imports below, which take seconds
    from increlora_jax.commands import train as run_command

    run_command()
    raise SystemExit

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from increlora_jax.config import RunConfig
from increlora_jax.errors import InputError
from increlora_jax.nn.adapter_files import read_adapter_config, save_adapter
from increlora_jax.nn.report import report
from increlora_jax.run.build import Plan, Run, plan_run, prepare_run
from increlora_jax.run.command_line import parse_command
from increlora_jax.run.dry_run import describe_chosen, describe_dry_run
from increlora_jax.run.first_values import begin_by_init
from increlora_jax.run.folder import (
    ADAPTER,
    BEST_ADAPTER,
    CHECKPOINTS,
    REPORT,
    Held,
    check_saved,
    clear,
    locked,
    look_into,
    read_finished,
    take_best,
    write_results,
)
from increlora_jax.run.memory_advice import advise_training
from increlora_jax.run.report_page import LiveReport
from increlora_jax.run.results import results_of, results_of_all, summarize
from increlora_jax.run.saved_run import describe_adapter
from increlora_jax.run.sweep import Member
from increlora_jax.runtime.compilation_cache import use_compilation_cache
from increlora_jax.runtime.console import Bar, is_first, prints_apart, say
from increlora_jax.runtime.ending import fail_clearly
from increlora_jax.runtime.libraries import quiet_libraries
from increlora_jax.runtime.memory import dispatch_synchronously, keep_freed_memory
from increlora_jax.runtime.out_of_memory import explain_shortage
from increlora_jax.runtime.preemption import Stop
from increlora_jax.runtime.processes import by_first, joined
from increlora_jax.runtime.start import take_import_seconds
from increlora_jax.runtime.streams import write_result
from increlora_jax.training.checkpoint import Checkpoints, Keep
from increlora_jax.training.clock import Clock
from increlora_jax.training.journal import Journal
from increlora_jax.training.loop import Job, Loop, Outcome
from increlora_jax.training.progress import Progress
from increlora_jax.training.run_log import RunLog
from increlora_jax.training.state import TrainState
from increlora_jax.training.together import pick
from increlora_jax.training.trackers import Tracked, check_trackers, open_trackers

GOES_ON = "; the same command continues from here"
"""Text after the line about a signal that has stopped the command."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; errors and signals end it with one line (see `fail_clearly`)."""
    imports = take_import_seconds()
    quiet_libraries()
    keep_freed_memory()
    dispatch_synchronously()
    stop = Stop(GOES_ON)
    with fail_clearly(GOES_ON) as ending, stop.listening():
        command = parse_command(argv)
        for note in command.notes:
            say(f"note: {note}")
        if command.is_dry:
            write_result(describe_dry_run(command.config))
            return
        ending.folder = Path(command.config.output_dir)
        train(command.config, stop, imports=imports)


def train(config: RunConfig, stop: Stop | None = None, *, imports: float = 0.0) -> dict[str, Any]:
    """Train from a configuration, or resume its run, until `results.json` is written.

    Args:
        config: All settings.
        stop: A request to stop, if signals are handled.
        imports: Seconds that the imports took before.

    Returns:
        The content of `results.json`.

    Raises:
        InputError: If a setting, file or model cannot be used.
    """
    with joined(config.training.distributed), explain_shortage(lambda: advise_training(config)):
        with prints_apart():
            results, summary = _train(_anchor(config), stop or Stop(), Clock(imports))
        if is_first():
            write_result(summary)
    return results


def _train(config: RunConfig, stop: Stop, clock: Clock) -> tuple[dict[str, Any], str]:
    folder = Path(config.output_dir)
    use_compilation_cache(config.training.compilation_cache_dir)
    check_trackers(config.training.report_to or ())
    with clock.phase("data"):
        plan = plan_run(config)
    asked, config = config, plan.config
    held = Held(by_first(lambda: look_into(folder, config).value))
    if held is Held.FINISHED:
        return _tell_again(folder, plan)
    for note in plan.data.notes:
        say(f"note: {note}")
    say(f"{config.adapter.method}: {plan.method.description}")
    for note in describe_chosen(asked, plan):
        say(f"note: {note}")
    with clock.phase("loading"):
        run = begin_by_init(prepare_run(plan))
    with clock.phase("data"):
        _announce(run)
    with _claimed(folder, plan, held), stop.deferred():
        results = _carry_out(run, folder, held, clock, stop)
    return results, summarize(results, folder)


@contextmanager
def _claimed(folder: Path, plan: Plan, held: Held) -> Iterator[None]:
    """Lock the folders against other runs, in the first process for all of this run."""
    with ExitStack() as stack:

        def claim() -> None:
            for inner in dict.fromkeys(("", *(member.name for member in plan.members))):
                stack.enter_context(locked(folder / inner))
            if look_into(folder, plan.config) is not held:
                raise InputError(f"--output-dir {folder}: another process has used it meanwhile")

        by_first(claim)
        yield


def _carry_out(run: Run, folder: Path, held: Held, clock: Clock, stop: Stop) -> dict[str, Any]:
    plan, members = run.plan, run.plan.members
    keep = Keep(plan.config.training.save_total_limit, plan.config.training.keep_period)
    checkpoints = Checkpoints(folder / CHECKPOINTS, keep, plan.identity)
    state, progress = _start(run, folder, held, checkpoints)

    def save_adapter_of(index: int, state: TrainState, is_best: bool) -> None:
        name = BEST_ADAPTER if is_best else ADAPTER
        _keep(folder / members[index].name / name, run, members[index], state)

    refresh = _report_of(plan, folder)
    with ExitStack() as stack:
        bar = stack.enter_context(
            Bar(plan.total_steps, step=progress[0].step, is_silent=not is_first())
        )
        journals = [
            _open_journal(run, index, folder, own, bar, stack) for index, own in enumerate(progress)
        ]
        stack.enter_context(checkpoints)
        job = Job(
            trainer=run.trainer,
            layout=plan.layout,
            evaluator=run.evaluator,
            timetable=plan.timetable,
            checkpoints=checkpoints,
            batch_at=run.batch_at,
            keep=save_adapter_of,
            journals=journals,
            bar=bar,
            clock=clock,
            stop=stop,
            steps_by_shape=run.batch_at.steps_by_shape,
            after_evaluation=refresh,
        )
        state, outcomes = Loop(job, state, run.parts.base).run()
    results = _write_results(run, folder, state, outcomes)
    refresh()
    return results


def _report_of(plan: Plan, folder: Path) -> Callable[[], None]:
    """Return the function that writes the report anew; without --report it does nothing."""
    if not (plan.config.training.report and is_first()):
        return lambda: None
    return LiveReport(folder, folder / REPORT).refresh


def _open_journal(
    run: Run, index: int, folder: Path, progress: Progress, bar: Bar, stack: ExitStack
) -> Journal:
    plan, member = run.plan, run.plan.members[index]
    own = folder / member.name
    names = plan.config.training.report_to or ()
    tracked = Tracked(own, str(own.relative_to(folder.parent)), progress.step, member.config.flat())
    log = RunLog(
        own,
        trackers=open_trackers(names, tracked) if is_first() else (),
        kept_bytes=progress.log_bytes,
        is_silent=not is_first(),
    )
    stack.enter_context(log)
    method, is_better = plan.methods[index], plan.data.kind.is_better
    return Journal(progress, log, plan.timetable, method, bar.say, member.name, is_better)


def _write_results(
    run: Run, folder: Path, state: TrainState, outcomes: list[Outcome]
) -> dict[str, Any]:
    """Write the results of every run, and then those of all, which mark the folder as finished."""
    members = run.plan.members
    each = [_results_of(run, i, folder, state, outcome) for i, outcome in enumerate(outcomes)]
    told = {member.name: results for member, results in zip(members, each, strict=True)}
    if len(members) > 1:
        told[""] = results_of_all(run.plan, each, outcomes)
    if is_first():
        for name, results in told.items():
            write_results(folder / name, results)
    return told[""]


def _results_of(
    run: Run, index: int, folder: Path, state: TrainState, outcome: Outcome
) -> dict[str, Any]:
    """Return the results of one run, whose last adapter may be of an earlier step."""
    own = folder / run.plan.members[index].name
    saved = None
    if run.plan.config.training.load_best_model_at_end:
        saved = by_first(lambda: take_best(own))
        outcome = outcome._replace(metrics=outcome.best_metrics)
    elif outcome.stopped is not None:
        saved = by_first(lambda: read_adapter_config(own / ADAPTER))
    return results_of(run, pick(state, index), outcome, saved)


def _start(
    run: Run, folder: Path, held: Held, checkpoints: Checkpoints
) -> tuple[TrainState, tuple[Progress, ...]]:
    """Return the state and progress to start from: of the newest sound checkpoint, or new ones."""
    config, count = run.plan.config, len(run.plan.members)
    state = run.first_state()
    step = None
    if held is Held.BEGUN:
        step, notes = checkpoints.newest()
        for note in notes:
            say(f"note: {note}")
    if step is None:
        if held is Held.BEGUN:
            say(f"{folder} holds this run, but no checkpoint yet: it starts over")
        keeps = held is Held.BEGUN
        by_first(lambda: clear(folder, config, keeps_checkpoints=keeps))
        # A run that begins with an adapter is scored before its first step, too.
        evaluated = -1 if run.plan.start else 0
        return state, tuple(Progress(evaluated=evaluated) for _ in range(count))
    saved = checkpoints.read(step)
    check_saved(folder, saved, run.plan.identity, count)
    say(f"resuming from the checkpoint of step {step}")
    return checkpoints.restore(step, state), saved.progress


def _tell_again(folder: Path, plan: Plan) -> tuple[dict[str, Any], str]:
    results = read_finished(folder, plan.identity)
    _report_of(plan, folder)()
    return results, f"this run is finished: {summarize(results, folder)}"


def _anchor(config: RunConfig) -> RunConfig:
    """Make local paths absolute, so that the run can be evaluated from any folder."""
    task, adapter = config.task, config.adapter
    if adapter.init_adapter is not None:
        start = Path(adapter.init_adapter).expanduser().resolve()
        config = replace(config, adapter=replace(adapter, init_adapter=str(start)))
    model = str(Path(task.model).resolve()) if Path(task.model).is_dir() else task.model
    data_dir = str(Path(task.data_dir).resolve()) if task.data_dir else None
    return replace(config, task=replace(task, model=model, data_dir=data_dir))


def _announce(run: Run) -> None:
    for note in run.notes:
        say(f"note: {note}")
    for encoded in (run.encoded_train, *run.encoded_dev.values()):
        for note in encoded.notes:
            say(f"note: {note}")
    say(report(run.parts).describe())
    if len(run.plan.members) > 1:
        names = ", ".join(member.name for member in run.plan.members)
        say(f"{len(run.plan.members)} runs train together: {names}")


def _keep(folder: Path, run: Run, member: Member, state: TrainState) -> None:
    plan = run.plan
    state = plan.layout.make_readable(state)
    if not is_first():
        return
    parts = run.trainer.parts(state, run.parts.base)
    described = describe_adapter(plan, member, int(state.step), report(parts).ranks)
    save_adapter(folder, parts, described)
