"""Protocol of kinds of tasks: everything that the trainer knows of a task and its data."""

import hashlib
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

Batch = dict[str, Any]
"""Arrays by name with a leading axis of rows: NumPy's on the host, JAX's in a compiled program."""

Predictions = Any
"""A pytree of arrays with a leading axis of rows."""

Metrics = dict[str, float]


class Split(Protocol):
    """Examples of one split, in the order of their source; a kind adds its own fields.

    Attributes:
        source: The file's name, or the hub's name of the split.
        num_lines: The lines of the file; None for a source without lines.
        is_labelled: Whether the source has the labels or answers that the model predicts.
    """

    @property
    def source(self) -> str: ...  # noqa: D102
    @property
    def num_lines(self) -> int | None: ...  # noqa: D102
    @property
    def is_labelled(self) -> bool: ...  # noqa: D102

    def __len__(self) -> int: ...

    def feed(self, digest: "hashlib._Hash") -> None:
        """Feed the content of every example to a digest."""

    def inputs(self) -> Iterable[Hashable]:
        """Return the input of every example, without its label."""


def identify(*splits: Split) -> str:
    """Return the SHA-256 of all examples in order; it does not depend on the path of the data."""
    digest = hashlib.sha256()
    for split in splits:
        split.feed(digest)
    return digest.hexdigest()


def note_shared(train: Split, dev: Mapping[str, Split]) -> list[str]:
    """Return a note for every dev split on examples that are also training examples."""
    judged = {name: list(split.inputs()) for name, split in dev.items()}
    known = set().union(*judged.values()).intersection(train.inputs())
    counts = {name: sum(row in known for row in rows) for name, rows in judged.items()}
    return [
        f"{count} of {len(dev[name])} examples of {dev[name].source or name} are training examples "
        f"of {train.source or 'train'} as well, so that the score flatters. Remove them from one"
        for name, count in counts.items()
        if count
    ]


class Ragged(NamedTuple):
    """A field whose rows differ in length: all rows end to end.

    Attributes:
        values: [total]; row i is `values[offsets[i]:offsets[i + 1]]`.
        offsets: int64 [rows + 1].
        fill: The padding value.
    """

    values: np.ndarray
    offsets: np.ndarray
    fill: int = 0

    @property
    def lengths(self) -> np.ndarray:
        """Length of each row, int64 [rows]."""
        return np.diff(self.offsets)


@dataclass(frozen=True, eq=False)
class Encoded:
    """A split as rows of numbers; an example may have several rows.

    Attributes:
        ragged: Fields whose rows differ in length, by their names in a batch.
        fixed: Fields whose rows have one shape [rows, …], by their names in a batch.
        beside: Further arrays that scoring needs, by name; batches do not hold them.
        notes: Notes on the encoding, for the user.
        num_cut: The number of examples that were cut to the length.
    """

    ragged: dict[str, Ragged]
    fixed: dict[str, np.ndarray]
    beside: Mapping[str, np.ndarray] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    num_cut: int = 0

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Length of each row's longest field, int64 [rows]."""
        return reduce(np.maximum, (each.lengths for each in self.ragged.values()))


@dataclass(frozen=True, eq=False)
class Kind:
    """A kind of task, bound to one task: a small record of functions.

    Attributes:
        task: The task's name for `--task`.
        dev_splits: The splits it is judged on; the best adapter is chosen on the first.
        head: A word of `models.spec.Head`.
        head_options: Options of that head.
        loading: Options for loading a checkpoint's own head: how its rows are matched.
        labels: The names of the outputs, which a checkpoint depends on; None without names.
        saved: The task's entry in an adapter's file, in plain JSON, from which the kind is
            restored.
        find: (folder, split) → the file of a split.
        read: (path, config) → the split of a file, and notes for the user.
        load_own: (names) → splits by name and notes, for a task with bundled data or data on the
            hub.
        encode: (split, tokenizer, max_length, name) → the rows of numbers of a split.
        pack: Builds a batch whose examples share rows, as `packing.pack_batch`; None if they must
            not.
        loss: (model, batch) → (sum of the losses [], sum of their weights []), traced.
        predict: (model, batch) → the numbers of every row that scoring needs, reduced on the
            device; traced.
        score: (predictions, encoded, splits) → metrics over all dev splits, by name.
        examine: (predictions, encoded, split) → all figures of one split.
        count: (split) → its numbers of rows and labels.
        metrics: The names of the metrics of a split; the best adapter is chosen by the first.
        is_better: (new, old) → whether a value of the first metric is better than another.
        count_tokens: (batch) → (tokens of examples [], positions including padding []), traced.
        is_one_row: Whether each example is one row, whatever its length.
        read_inputs: (lines, kind of file, config, size) → splits without labels of at most `size`
            examples, in the order of the file; None if the kind only trains and scores.
        take_inputs: (rows from Python) → the split without labels; None likewise.
        answer: (predictions, encoded, split) → the answer to every example, a named tuple; None
            likewise.
    """

    task: str
    dev_splits: tuple[str, ...]
    head: Any
    head_options: Mapping[str, Any]
    loading: Mapping[str, Any]
    labels: tuple[str, ...] | None
    saved: Mapping[str, Any]
    find: Callable[[Path, str], Path]
    read: Callable[[Path, Any], tuple[Split, tuple[str, ...]]]
    load_own: Callable[[Sequence[str]], tuple[Mapping[str, Split], tuple[str, ...]]]
    encode: Callable[[Any, Any, int, str], Encoded]
    pack: Callable[..., Batch] | None
    loss: Callable[[Any, Batch], tuple[Any, Any]]
    predict: Callable[[Any, Batch], Predictions]
    score: Callable[[Mapping[str, Predictions], Mapping[str, Encoded], Mapping[str, Any]], Metrics]
    examine: Callable[[Predictions, Encoded, Any], dict[str, Any]]
    count: Callable[[Any], dict[str, Any]]
    metrics: tuple[str, ...]
    is_better: Callable[[float, float], bool]
    count_tokens: Callable[[Batch], tuple[Any, Any]]
    is_one_row: bool = True
    read_inputs: Callable[[Any, str, Any, int], Iterator[Split]] | None = None
    take_inputs: Callable[[Sequence[Any]], Split] | None = None
    answer: Callable[[Predictions, Encoded, Any], Sequence[Any]] | None = None


@dataclass(frozen=True, eq=False)
class TaskData:
    """A task with its examples.

    Attributes:
        kind: The task's kind; for the user's own data, with the labels found in training.
        train: The training examples; None if the data are only scored.
        dev: One split for each of `kind.dev_splits`, in that order.
        notes: Notes on the reading of the data, for the user.
    """

    kind: Kind
    train: Split | None
    dev: Mapping[str, Split]
    notes: tuple[str, ...] = ()

    @property
    def splits(self) -> dict[str, Split]:
        """All splits by name, training first."""
        train = {} if self.train is None else {"train": self.train}
        return {**train, **self.dev}

    def count(self) -> dict[str, Any]:
        """Count the rows and labels of every split, as `results.json` has them."""
        return {name: self.kind.count(split) for name, split in self.splits.items()}


class Reader(NamedTuple):
    """A kind of task before it is bound to a task.

    Attributes:
        tasks: Its names for `--task`.
        load: (config) → the `TaskData` for a configuration.
        restore: (saved, config) → the `Kind` of a trained adapter, from its file's entry.
    """

    tasks: tuple[str, ...]
    load: Callable[[Any], TaskData]
    restore: Callable[[Mapping[str, Any], Any], Kind]


def count_not_finite(predictions: Predictions) -> int:
    """Count the rows with a number that is not finite."""
    import jax

    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(predictions)]
    rows = [np.isfinite(leaf).reshape(len(leaf), -1).all(axis=-1) for leaf in leaves]
    return int(np.sum(~reduce(np.logical_and, rows)))


def larger_is_better(new: float, old: float) -> bool:
    """Return whether a metric has grown; NaN is below every number."""
    return _or_lowest(new) > _or_lowest(old)


def smaller_is_better(new: float, old: float) -> bool:
    """Return whether a metric has fallen; NaN is above every number."""
    return larger_is_better(-new, -old)


def _or_lowest(value: float) -> float:
    return -math.inf if math.isnan(value) else value
