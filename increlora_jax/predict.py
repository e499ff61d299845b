"""Answer texts with a trained model: `python -m increlora_jax.predict --run DIR --text "…"`."""

if __name__ == "__main__":  # before the imports below, which take seconds
    from increlora_jax.commands import predict as run_command

    run_command()
    raise SystemExit

import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from increlora_jax.config import TaskConfig
from increlora_jax.errors import InputError
from increlora_jax.run.answer_files import check_output, flatten, open_answers
from increlora_jax.run.loading import base_from, load_trained
from increlora_jax.run.predict_flags import parse_prediction
from increlora_jax.run.predictor import Predictor, check_top, keep_top, merged_predictor
from increlora_jax.runtime.compilation_cache import use_compilation_cache
from increlora_jax.runtime.console import Pace, prints_apart, say
from increlora_jax.runtime.ending import fail_clearly
from increlora_jax.runtime.libraries import quiet_libraries
from increlora_jax.runtime.preemption import Stop
from increlora_jax.runtime.processes import check_devices
from increlora_jax.tasks.data.lines import Lines
from increlora_jax.tasks.data.tables import input_kind_of
from increlora_jax.tasks.kind import Kind, Split

PIECE = 4096
"""Rows that are read and answered at a time."""

STANDARD_INPUT = "-"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command: answers go to the file or to standard output, notes to standard error."""
    quiet_libraries()
    stop = Stop()
    with fail_clearly(), stop.listening(), stop.deferred():
        chosen = parse_prediction(argv)
        source = None if chosen.input in (None, STANDARD_INPUT) else Path(chosen.input).expanduser()
        if chosen.output is not None:
            check_output(chosen.output, source)
        with prints_apart():
            predictor = _load(chosen, stop)
        if chosen.top_k is not None:
            check_top(predictor.kind, chosen.top_k)
        answers = predictor.stream(_read(predictor.kind, chosen, source))
        _write(chosen, predictor.kind, _count(answers))


def _load(chosen: Namespace, stop: Stop) -> Predictor:
    check_devices()
    trained = load_trained(
        chosen.run, adapter=chosen.adapter, base=base_from(chosen), method=chosen.method
    )
    use_compilation_cache(trained.plan.config.training.compilation_cache_dir)
    for note in trained.notes:
        say(f"note: {note}")
    return merged_predictor(trained, chosen.batch_size, stop)


def _read(kind: Kind, chosen: Namespace, source: Path | None) -> Iterable[Split]:
    """Return the texts of the flags or of the file, in pieces."""
    assert kind.take_inputs is not None
    assert kind.read_inputs is not None
    if chosen.text is not None:
        pairs = chosen.text if chosen.text2 is None else zip(chosen.text, chosen.text2, strict=True)
        return [kind.take_inputs(list(pairs))]
    config = replace(TaskConfig(), text_column=chosen.text_column)
    if source is None:
        lines, ending = Lines(Path("standard input"), sys.stdin.buffer), ".jsonl"
    else:
        lines, ending = Lines(source), input_kind_of(source.name)
    return kind.read_inputs(lines, ending, config, PIECE)


def _count(found: Iterator[tuple[Split, Any, Sequence[Any]]]) -> Iterator[Sequence[Any]]:
    """Yield the answers, and tell how many there are from time to time and at the end."""
    pace, rows, cut = Pace(delay=5.0), 0, 0
    for _, encoded, answers in found:
        rows, cut = rows + len(answers), cut + encoded.num_cut
        yield answers
        if pace.is_due():
            say(f"{rows} examples answered")
    if cut:
        say(f"note: {cut} of {rows} examples were cut to the model's --max-seq-length")


def _write(chosen: Namespace, kind: Kind, answers: Iterator[Sequence[Any]]) -> None:
    first = next(answers, None)
    if not first:
        raise InputError(f"--input {chosen.input}: no examples. Add some")
    with open_answers(chosen.output, list(flatten(first[0]))) as write:
        for some in chain([first], answers):
            told = some if chosen.top_k is None else keep_top(kind, some, chosen.top_k)
            if not write(told):  # as `| head -1` does
                return
