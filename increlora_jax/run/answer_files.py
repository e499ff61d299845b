"""Files of answers: JSON Lines, CSV or TSV, written whole or not at all."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from increlora_jax.errors import InputError
from increlora_jax.files.replace import replace_file
from increlora_jax.runtime.streams import write_result

SUFFIXES = (".jsonl", ".csv", ".tsv")

Write = Callable[[Sequence[Any]], bool]
"""Writes the answers to further examples, named tuples of one kind; false if nobody reads them."""


def check_output(path: Path, source: Path | None) -> None:
    """Check the name and place of a file of answers, before any work.

    Raises:
        InputError: If it cannot be written, or is the file that is read.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"--output {path}: unknown kind of file. End it in {', '.join(SUFFIXES)}")
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"--output {path}: not a file in a folder that exists. Name another")
    if source is not None and path.exists() and source.exists() and path.samefile(source):
        raise InputError(f"--output {path}: that is the file of --input. Name another")


@contextmanager
def open_answers(path: Path | None, columns: Sequence[str]) -> Iterator[Write]:
    """Open a file of answers; it is in its place only when all answers are written.

    Args:
        path: The file; None: JSON Lines on standard output.
        columns: The columns of a table, as `flatten` names them.

    Raises:
        InputError: If an answer does not fit into the kind of file.
        WriteError: If the file cannot be written.
    """
    if path is None:
        yield lambda answers: write_result("\n".join(map(_to_json, answers)))
        return
    with replace_file(path) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        yield _make_writer(path, file, columns)


def flatten(answer: Any) -> dict[str, Any]:
    """Return an answer's values by column: those within a dictionary as `name.key`."""
    flat: dict[str, Any] = {}
    for name, value in answer._asdict().items():
        inner = value.items() if isinstance(value, dict) else None
        flat |= {name: value} if inner is None else {f"{name}.{key}": v for key, v in inner}
    return flat


def _to_json(answer: Any) -> str:
    return json.dumps(answer._asdict(), ensure_ascii=False)


def _make_writer(path: Path, file: io.TextIOBase, columns: Sequence[str]) -> Write:
    if path.suffix.lower() == ".jsonl":
        return lambda answers: file.write("".join(_to_json(a) + "\n" for a in answers)) >= 0
    form: dict[str, Any] = {"lineterminator": "\n"}
    if path.suffix.lower() == ".tsv":
        form |= {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None}
    table = csv.DictWriter(file, columns, **form)
    rows = 0

    def write(answers: Sequence[Any]) -> bool:
        nonlocal rows
        if rows == 0:
            table.writeheader()
        for answer in answers:
            rows += 1
            try:
                table.writerow(flatten(answer))
            except csv.Error as error:
                raise InputError(
                    f"--output {path}: answer {rows} holds a tab or a line break, which a .tsv "
                    "file cannot. Name a .jsonl or .csv file"
                ) from error
        return True

    return write
