"""Score a saved run on its dev data or other data: `python -m increlora_jax.evaluate --run DIR`."""

if __name__ == "__main__":  # before the imports below, which take seconds
    from increlora_jax.commands import evaluate as run_command

    run_command()
    raise SystemExit

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from increlora_jax.config import RunConfig
from increlora_jax.errors import InputError
from increlora_jax.files.replace import find_folder
from increlora_jax.nn.adapter_files import load_adapter
from increlora_jax.nn.report import ranks_of
from increlora_jax.run.answer_files import check_output, flatten, open_answers
from increlora_jax.run.build import Plan, Run, prepare_run
from increlora_jax.run.command_line import read_run
from increlora_jax.run.evaluate_flags import evaluate_parser
from increlora_jax.run.folder import ADAPTER, CONFIG, name_adapter
from increlora_jax.run.loading import BASE, base_from, load_trained
from increlora_jax.run.memory_advice import advise_evaluation
from increlora_jax.run.saved_run import check_ranks, open_adapter
from increlora_jax.run.scored_data import Scored, Source, load_scored
from increlora_jax.run.splits import predict_splits
from increlora_jax.run.sweep import members_of
from increlora_jax.runtime.compilation_cache import use_compilation_cache
from increlora_jax.runtime.console import prints_apart, say
from increlora_jax.runtime.ending import fail_clearly
from increlora_jax.runtime.libraries import quiet_libraries
from increlora_jax.runtime.out_of_memory import explain_shortage
from increlora_jax.runtime.preemption import Stop
from increlora_jax.runtime.processes import check_devices
from increlora_jax.runtime.streams import write_result
from increlora_jax.tasks.kind import Encoded, Predictions, Split, count_not_finite


class Evaluation(NamedTuple):
    """Scores of a run.

    Attributes:
        metrics: The task's metrics, as in `results.json`.
        data: `run` if the data equal the run's dev data, `other` if not, or `unknown`.
        splits: All figures of each split (see `Kind.examine`).
        notes: Notes for the user.
        answers: The answers to the examples of each split, in order; none if the kind has none.
    """

    metrics: dict[str, float]
    data: str
    splits: dict[str, dict[str, Any]]
    notes: tuple[str, ...]
    answers: dict[str, Sequence[Any]]

    def describe(self) -> dict[str, Any]:
        """Return the object that the command prints: metrics by name, then `data` and `splits`."""
        return {**self.metrics, "data": self.data, "splits": self.splits}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command: print one line of JSON on standard output, and notes on standard error."""
    quiet_libraries()
    with fail_clearly(), Stop().listening():
        chosen = evaluate_parser().parse_flags(argv)
        source = Source(*(getattr(chosen, name) for name in Source._fields))
        if chosen.output is not None:
            _check_output(chosen.output, chosen.run, source)
        name = name_adapter(chosen.adapter)
        with prints_apart():
            options: Any = {"adapter": name, "base": base_from(chosen), "method": chosen.method}
            told = examine_all(chosen.run, source, **options)
        for note in dict.fromkeys(note for one in told.values() for note in one.notes):
            say(f"note: {note}")
        if chosen.output is not None:
            _write_answers(chosen.output, told)
        each = {name: one.describe() for name, one in told.items()}
        write_result(json.dumps(each.get("", each)))


def _check_output(path: Path, run: Path, source: Source) -> None:
    """Check the place of the answers; no file beside the data is overwritten."""
    check_output(path, None if source.file is None else Path(source.file).expanduser())
    folder = source.data_dir
    if folder is None and (run / CONFIG).is_file():
        folder = read_run(run / CONFIG).task.data_dir
    if folder and path.exists() and path.resolve().parent == Path(folder).expanduser().resolve():
        raise InputError(f"--output {path}: a file of the data's folder. Name another")


def _write_answers(path: Path, told: Mapping[str, Evaluation]) -> None:
    """Write the answers of one run to one split."""
    each = [answers for one in told.values() for answers in one.answers.values() if answers]
    if len(each) != 1:
        raise InputError(
            f"--output {path}: the answers of one run to one split are written, and here are "
            f"{len(each)}. Name a run, and a split by --split"
        )
    with open_answers(path, list(flatten(each[0][0]))) as write:
        write(each[0])


def examine_all(
    run: Path,
    source: Source,
    *,
    adapter: str = ADAPTER,
    base: Mapping[str, str | None],
    method: str | None = None,
) -> dict[str, Evaluation]:
    """Evaluate a run, or every run of a folder of runs that trained together.

    Args:
        run: The folder of the run or runs.
        source: The data; default: each run's dev data.
        adapter: The adapter's folder within a run's folder.
        base: The base model's place by the names of its flags; empty: as in training.
        method: `package.module:function` of the user's method that trained the runs, if any.

    Returns:
        The scores by the runs' names; the name of a single run is empty.

    Raises:
        InputError: If a folder is missing or unknown, or as `examine` raises.
    """
    if not (run / CONFIG).is_file():
        return {"": _examine_alone(run, source, adapter, base, method)}
    config = _read_config(run)
    names = [member.name for member in members_of(config)]
    _check_folders(run, config, names)
    _check_named(run, names, adapter)
    options: Any = {"adapter": adapter, "base": base, "method": method}
    return {name: examine(run / name, source, **options) for name in names}


def _check_folders(run: Path, config: RunConfig, names: Sequence[str]) -> None:
    """Check that every run named by config.yaml has its folder."""
    missing = [name for name in names if not (run / name).is_dir()]
    if missing:
        said = {"seeds": config.training.seeds, "sweep": config.training.sweep}
        keys = " and ".join(f"{key} {value}" for key, value in said.items() if value is not None)
        raise InputError(
            f"{run / CONFIG}: {keys} names {len(names)} runs that trained together, and there is "
            f"no folder {missing[0]}. Restore it"
        )


def _check_named(run: Path, names: Sequence[str], adapter: str) -> None:
    """Check that config.yaml names every run of the folder, and that a lone one has its adapter."""
    is_alone = names == [""]
    if is_alone and find_folder(run / adapter).is_dir():
        return
    inner = {file.parent.name for file in run.glob(f"*/{CONFIG}")}
    if unnamed := sorted(inner - {*names}):
        raise InputError(
            f"{run / CONFIG}: its seeds and sweep do not name {', '.join(unnamed)}, runs that the "
            f"folder holds. Restore the keys, or evaluate one: --run {run / unnamed[0]}"
        )
    if is_alone:
        raise InputError(
            f"--run {run}: there is no {adapter} yet. Finish the training by the same command, or "
            "give another --adapter"
        )


def evaluate(
    run: Path | str,
    *,
    data_dir: str | None = None,
    adapter: str = ADAPTER,
    model: str | None = None,
    method: str | None = None,
) -> dict[str, float]:
    """Load a run's adapter onto its base model and compute the task's metrics on dev.

    Args:
        run: The run's folder.
        data_dir: A folder with other data; default: the run's dev data.
        adapter: The adapter's folder within the run's folder.
        model: Another place of the base model; default: as in training.
        method: `package.module:function` of the user's method that trained the run, if any.

    Returns:
        The metrics by name.

    Raises:
        InputError: As `examine` raises.
    """
    base = dict.fromkeys(BASE) | {"model": model} if model else {}
    source = Source(data_dir)
    return examine(Path(run), source, adapter=adapter, base=base, method=method).metrics


def examine(
    run: Path,
    source: Source,
    *,
    adapter: str = ADAPTER,
    base: Mapping[str, str | None],
    method: str | None = None,
) -> Evaluation:
    """Load a run's adapter onto its base model and score data.

    Args:
        run: The run's folder.
        source: The data; default: the run's dev data.
        adapter: The adapter's folder within the run's folder.
        base: The base model's place by the names of its flags; empty: as in training.
        method: `package.module:function` of the user's method that trained the run. Its code is
            then imported.

    Raises:
        InputError: If the folder holds no such run, or data, model or adapter do not fit it.
    """
    opened = open_adapter(run / adapter, _read_config(run), base, method)
    config, folder, saved = opened.config, opened.folder, opened.saved
    use_compilation_cache(config.training.compilation_cache_dir)
    check_devices()
    scored = load_scored(saved, config.task, source)
    plan = opened.plan(scored.data)
    scored = scored._replace(data=plan.data)  # whose kind has the run's choice of the metric
    with explain_shortage(lambda: advise_evaluation(config, run / CONFIG)):
        ready, predictions = _predict(plan, folder, saved)
    _check_finite(opened.name, predictions, ready.plan.data.dev)
    notes = (*opened.notes, *scored.notes, *ready.plan.notes)
    return _score(scored, predictions, ready.encoded_dev, notes)


def _examine_alone(
    folder: Path,
    source: Source,
    adapter: str,
    base: Mapping[str, str | None],
    method: str | None,
) -> Evaluation:
    """Score a model that comes without a run: an adapter, one of PEFT, or a whole model."""
    if adapter != ADAPTER:
        raise InputError(f"--adapter best: {folder} is no run, which alone has several adapters")
    check_devices()
    trained = load_trained(folder, base=base, method=method)
    config = trained.plan.config
    use_compilation_cache(config.training.compilation_cache_dir)
    scored = load_scored(trained.saved or trained.model.task, config.task, source)
    predictions, encoded = predict_splits(trained, scored.data.dev)
    _check_finite(f"the model in {folder}", predictions, scored.data.dev)
    return _score(scored, predictions, encoded, (*trained.notes, *scored.notes))


def _predict(
    plan: Plan, folder: Path, saved: Mapping[str, Any]
) -> tuple[Run, dict[str, Predictions]]:
    """Load the adapter from `folder` and predict every split."""
    ready = prepare_run(plan)
    loaded = load_adapter(folder, ready.parts)
    check_ranks(folder, saved, ranks_of(loaded.slots))
    (predictions,) = ready.evaluator.predictions(ready.first_state(loaded), ready.parts.base)
    return ready, predictions


def _check_finite(
    model: str, predictions: Mapping[str, Predictions], splits: Mapping[str, Split]
) -> None:
    counts = {name: count_not_finite(each) for name, each in predictions.items()}
    told = [f"{n} of {len(splits[name])} {name} examples" for name, n in counts.items() if n]
    if told:
        raise InputError(
            f"{model} gives logits that are not finite, of {', '.join(told)}: there is no score. "
            "Restore the adapter, or train again with a lower --learning-rate"
        )


def _score(
    scored: Scored,
    predictions: Mapping[str, Predictions],
    encoded: Mapping[str, Encoded],
    notes: tuple[str, ...],
) -> Evaluation:
    kind, splits = scored.data.kind, scored.data.dev
    told = tuple(note for each in encoded.values() for note in each.notes)
    answer = kind.answer
    return Evaluation(
        kind.score(predictions, encoded, splits),
        scored.origin,
        {name: kind.examine(predictions[name], encoded[name], splits[name]) for name in splits},
        (*notes, *told),
        {n: answer(predictions[n], encoded[n], splits[n]) for n in splits} if answer else {},
    )


def _read_config(run: Path) -> RunConfig:
    if not (run / CONFIG).is_file():
        raise InputError(f"--run {run} holds no run: there is no {CONFIG}")
    return read_run(run / CONFIG)
