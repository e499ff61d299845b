"""Tasks of labelled texts: columns, labels and examples."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class TextTask:
    """A task: its text columns, labels and metrics.

    Attributes:
        name: Its name for `--task`.
        columns: The names of its one or two text columns.
        labels: The class names, in the order of their ids; None for a regression.
        metrics: Names in `metrics.METRICS`; the best adapter is chosen by the first.
        dev_splits: The splits it is judged on; the best adapter is chosen on the first.
        score_range: The lowest and highest label of a bounded regression.
    """

    name: str
    columns: tuple[str, ...]
    labels: tuple[str, ...] | None
    metrics: tuple[str, ...]
    dev_splits: tuple[str, ...] = ("dev",)
    score_range: tuple[float, float] | None = None

    @property
    def is_regression(self) -> bool:
        """True if the labels are numbers rather than classes."""
        return self.labels is None

    @property
    def is_pair(self) -> bool:
        """True if each example is two texts."""
        return len(self.columns) == 2

    @property
    def num_labels(self) -> int:
        """Width of the model's output: the number of classes, or 1 for a regression."""
        return 1 if self.labels is None else len(self.labels)


@dataclass(frozen=True, eq=False)
class Texts:
    """Examples of one split.

    Attributes:
        first: The text, or the first of each pair.
        second: The second of each pair; None for a task of single texts.
        labels: int32 class ids, or float32 scores; -1 or NaN if the source has no labels.
        source, num_lines, is_labelled: See `kind.Split`.
    """

    first: list[str]
    second: list[str] | None
    labels: np.ndarray
    source: str = ""
    num_lines: int | None = None
    is_labelled: bool = True

    def __len__(self) -> int:
        return len(self.first)

    def feed(self, digest: "hashlib._Hash") -> None:
        """Feed every text and label to a digest."""
        digest.update(json.dumps([self.first, self.second]).encode())
        digest.update(self.labels.tobytes())

    def inputs(self) -> Iterable[tuple[str, ...]]:
        """Return the text or the pair of texts of every example."""
        return zip(*filter(None, (self.first, self.second)), strict=True)

    @property
    def num_empty(self) -> int:
        """Number of examples with an empty text; white space alone counts as empty."""
        seconds = self.first if self.second is None else self.second
        pairs = zip(self.first, seconds, strict=True)
        return sum(not (first.strip() and second.strip()) for first, second in pairs)


class TextData(NamedTuple):
    """A task with its examples.

    Attributes:
        task: The task; for the user's own data, with the labels found in training.
        train: The training examples.
        dev: One split for each of `task.dev_splits`, in that order.
        notes: Notes on the reading of the data, for the user.
    """

    task: TextTask
    train: Texts
    dev: dict[str, Texts]
    notes: tuple[str, ...] = ()
