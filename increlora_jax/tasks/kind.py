"""The protocol of tasks: all that the trainer knows of a kind of task, and of its data."""

import hashlib
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

Batch = dict[str, Any]
"""Arrays by name, of a leading axis of rows; NumPy's on the host, JAX's in a compiled program."""

Predictions = Any
"""A pytree of arrays with a leading axis of rows."""

Metrics = dict[str, float]


class Split(Protocol):
    """The examples of one split, in the order of their source; a kind adds its own fields.

    Attributes:
        source: The file's name, or the hub's name of the split.
        num_lines: The lines of the file; None for a source without lines.
        is_labelled: Whether the source has what the model is to predict.
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
    """Return the SHA-256 of every example, in order: equal data under another path is the same."""
    digest = hashlib.sha256()
    for split in splits:
        split.feed(digest)
    return digest.hexdigest()


def note_shared(train: Split, dev: Mapping[str, Split]) -> list[str]:
    """Return a note for every dev split of which examples are training examples, too."""
    judged = {name: list(split.inputs()) for name, split in dev.items()}
    known = set().union(*judged.values()).intersection(train.inputs())
    counts = {name: sum(row in known for row in rows) for name, rows in judged.items()}
    return [
        f"{count} of {len(dev[name])} examples of {dev[name].source or name} are training examples "
        f"of {train.source or 'train'} as well, so that the score flatters; remove them from one"
        for name, count in counts.items()
        if count
    ]


class Ragged(NamedTuple):
    """A field of every row, whose lengths differ: all rows end to end.

    Attributes:
        values: [total]; row i is `values[offsets[i]:offsets[i + 1]]`.
        offsets: int64 [rows + 1].
        fill: The value that pads a row.
    """

    values: np.ndarray
    offsets: np.ndarray
    fill: int = 0

    @property
    def lengths(self) -> np.ndarray:
        """The length of each row, int64 [rows]."""
        return np.diff(self.offsets)


@dataclass(frozen=True, eq=False)
class Encoded:
    """A split as rows of numbers; an example may be several rows.

    Attributes:
        ragged: Fields of rows of any length, by their names in a batch.
        fixed: Fields of rows of one shape [rows, …], by their names in a batch.
        beside: Whatever else scoring needs of the rows; no batch holds it.
        notes: What the user should know of the encoding.
    """

    ragged: dict[str, Ragged]
    fixed: dict[str, np.ndarray]
    beside: Any = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def lengths(self) -> np.ndarray:
        """The length of each row's longest field, int64 [rows]."""
        return reduce(np.maximum, (field.lengths for field in self.ragged.values()))


@dataclass(frozen=True, eq=False)
class Kind:
    """A kind of task, bound to one task: a small record of functions.

    Beside `task`, the name that `--task` has for it:

    - `dev_splits`: the splits it is judged on; the best adapter is chosen on the first.
    - `head`: a word of `models.spec.Head`; `head_options` are what that head takes.
    - `loading`: what loading a checkpoint's own head takes beside: how its rows are matched.
    - `labels`: the names of the outputs, on which a checkpoint depends; None without names.
    - `saved`: what an adapter keeps of the task, in plain JSON; the kind is restored from it.
    - `find(folder, split)` → the file of a split; `read(path, config)` → the split of a file, and
      notes for the user.
    - `load_own(names)` → splits by name and notes, of a task with data of its own or on the hub.
    - `encode(split, tokenizer, max_length, name)` makes rows of numbers of a split.
    - `pack` builds a batch whose examples share rows, as `packing.pack_batch`; None if none may.
    - `loss(model, batch)` → (sum of the losses [], sum of their weights []), traced.
    - `predict(model, batch)` → what scoring needs of every row, reduced on the device; traced.
    - `score(predictions, encoded, splits)` → metrics over all dev splits, each by name.
    - `examine(predictions, encoded, split)` → every figure of one split.
    - `count(split)` → its numbers of rows and labels.
    - `metrics`: the names of the metrics of a split; the best adapter is chosen by the first.
    - `is_better(new, old)`: whether one value of that metric is better than another.
    - `count_tokens(batch)` → (tokens of examples [], places for tokens []), traced.
    - `is_one_row`: whether each example is one row, whatever its length.
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


@dataclass(frozen=True, eq=False)
class TaskData:
    """A task with its examples.

    Attributes:
        kind: The task's kind; for the user's own data, with the labels found in training.
        train: The training examples; None if the data is only to be scored.
        dev: One split for each of `kind.dev_splits`, in that order.
        notes: What the user should know of how the data was read, one counted report each.
    """

    kind: Kind
    train: Split | None
    dev: Mapping[str, Split]
    notes: tuple[str, ...] = ()

    @property
    def splits(self) -> dict[str, Split]:
        """Every split by name, training first."""
        train = {} if self.train is None else {"train": self.train}
        return {**train, **self.dev}

    def count(self) -> dict[str, Any]:
        """Count the rows and labels of every split, as `results.json` has them."""
        return {name: self.kind.count(split) for name, split in self.splits.items()}


class Reader(NamedTuple):
    """One kind of task, before it is bound to a task: how its tasks are loaded.

    - `tasks`: the names that `--task` has for them.
    - `load(config)` → `TaskData` of the configuration's `TaskConfig`.
    - `restore(saved, config)` → the `Kind` of a trained adapter, from what it says of its task.
    """

    tasks: tuple[str, ...]
    load: Callable[[Any], TaskData]
    restore: Callable[[Mapping[str, Any], Any], Kind]


def count_not_finite(predictions: Predictions) -> int:
    """Count the rows of which a number is not finite."""
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
