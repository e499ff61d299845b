"""Matching of a checkpoint's output layer to a task's labels.

If a head was trained on the same labels in another order, its rows are permuted. If a head was
trained on other labels, it is not used, even if its size fits.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Labels = tuple[str, ...] | None
"""Names of a task's classes in the order of their ids; None for a regression."""

_SYNONYMS = {
    "neg": "negative",
    "pos": "positive",
    "entail": "entailment",
    "entails": "entailment",
    "contradict": "contradiction",
    "contradicts": "contradiction",
    "contradictory": "contradiction",
    "non_entailment": "not_entailment",
    "non_duplicate": "not_duplicate",
    "non_equivalent": "not_equivalent",
}
"""Other spellings of GLUE's names in published checkpoints."""


class HeadRows(NamedTuple):
    """The rows of a checkpoint's output layer for a task's labels.

    Attributes:
        order: For each label of the task, the row that scores it; None if the layer is initialized
            anew.
        note: The decision and its reason, for the user.
    """

    order: tuple[int, ...] | None
    note: str

    @property
    def is_permuted(self) -> bool:
        """True if the rows change places."""
        return self.order is not None and self.order != tuple(range(len(self.order)))


def choose_rows(config: "PretrainedConfig", labels: Labels, rows: int) -> HeadRows:
    """Choose the rows of a checkpoint's output layer for a task's labels.

    Args:
        config: The checkpoint's configuration, which may name its rows.
        labels: The task's labels.
        rows: The number of rows in the checkpoint.
    """
    names = _read_names(config, rows)
    is_regression = config.problem_type == "regression" or rows == 1
    if is_regression != (labels is None):
        return _start_anew("a regression" if is_regression else _list(names, rows), labels)
    if labels is None:
        return _choose_score(config, rows)
    if rows != len(labels):
        return _start_anew(_list(names, rows), labels)
    if names is None:
        return _keep(rows, f"whose labels have no names, for {_show(labels)} in this order")
    return _match(names, labels)


def _choose_score(config: "PretrainedConfig", rows: int) -> HeadRows:
    is_score = rows == 1 and config.problem_type in (None, "regression")
    return _keep(rows, "a regression") if is_score else _start_anew(f"{rows} outputs", None)


def _match(names: tuple[str, ...], labels: tuple[str, ...]) -> HeadRows:
    given, wanted = [_normalize(name) for name in names], [_normalize(name) for name in labels]
    if len({*given}) == len(given) and {*given} == {*wanted}:
        order = tuple(given.index(label) for label in wanted)
        if order == tuple(range(len(order))):
            return _keep(len(order), f"which has the task's labels {_show(names)}")
        rows = ", ".join(
            f"{label} from row {row}" for label, row in zip(labels, order, strict=True)
        )
        return HeadRows(
            order,
            f"the checkpoint's head has the task's labels in another order, {_show(names)}: its "
            f"rows are permuted to the task's ({rows})",
        )
    if labels == _numbers(len(labels)):
        pairs = ", ".join(f"{label} is {name}" for label, name in zip(labels, names, strict=True))
        return _keep(len(names), f"with the task's labels as its ids: {pairs}")
    return _start_anew(_list(names, len(names)), labels)


def _read_names(config: "PretrainedConfig", rows: int) -> tuple[str, ...] | None:
    """Return the names of the rows; None if there are none, or not one for each row."""
    named: Any = config.id2label
    if not isinstance(named, dict) or set(named) != set(range(rows)):
        return None
    names = tuple(str(named[index]).strip() for index in range(rows))
    return None if _are_unnamed(names) else names


def _are_unnamed(names: tuple[str, ...]) -> bool:
    """Return whether names are only numbers of rows: LABEL_0, label 1, 2."""
    found = [re.fullmatch(r"(?:label|class)?[ _-]?(\d{1,9})", name.lower()) for name in names]
    return all(match and int(match[1]) == row for row, match in enumerate(found))


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


def _normalize(name: str) -> str:
    word = re.sub(r"(?<=\w)[\s_-]+(?=\w)", "_", name.strip().casefold())
    return _SYNONYMS.get(word, word)


def _keep(rows: int, why: str) -> HeadRows:
    return HeadRows(tuple(range(rows)), f"the checkpoint's head is kept, {why}")


def _start_anew(what: str, labels: Labels) -> HeadRows:
    wanted = "a regression" if labels is None else f"the labels {_show(labels)}"
    return HeadRows(
        None,
        f"the checkpoint's head is for {what}, the task for {wanted}: its output layer is "
        "initialized anew",
    )


def _list(names: Sequence[str] | None, rows: int) -> str:
    return f"{rows} labels without names" if names is None else f"the labels {_show(names)}"


def _show(names: Sequence[str]) -> str:
    most = 10
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
