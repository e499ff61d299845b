"""Inference of a task from the labels of a training file, and refusal of wrong labels."""

from collections import defaultdict
from collections.abc import Sequence

from increlora_jax.errors import InputError
from increlora_jax.tasks.counts import count_word
from increlora_jax.tasks.data.label_forms import (
    fold,
    has_decimal_comma,
    has_other_signs,
    has_unit,
    is_integer,
    is_number,
    may_be_missing,
)
from increlora_jax.tasks.data.labels import describe_rows
from increlora_jax.tasks.data.records import quote, quote_all
from increlora_jax.tasks.data.tables import Table
from increlora_jax.tasks.labelled_texts import TextTask

PROBLEM_TYPES = ("auto", "single_label_classification", "regression")

MOSTLY, HALF = 0.9, 0.5
"""Shares of numbers, among rows or different labels, above which other labels are errors.

`MOSTLY` is for integers: a tenth leaves room for classes of mixed names ("0", "1", "two"). If a
number is not an integer, more than `HALF` is enough, since class names seldom are such numbers.
`HALF` is enough if all others are words for a missing value or numbers in another spelling.
"""

REGRESSION_METRICS, CLASS_METRICS = ("pearson", "spearmanr"), ("accuracy", "macro_f1")


def describe_task(columns: tuple[str, ...], labels: tuple[str, ...] | None) -> TextTask:
    """Return the task of these text columns and labels; without labels, a regression.

    Macro-F1 is a metric of more than two classes.
    """
    if labels is None:
        return TextTask("text", columns, None, REGRESSION_METRICS)
    return TextTask(
        "text", columns, labels, CLASS_METRICS if len(labels) > 2 else CLASS_METRICS[:1]
    )


def tell_task(train: Table, problem_type: str) -> TextTask:
    """Infer a task from the training table, whose labels are not empty.

    Args:
        train: The table.
        problem_type: One of `PROBLEM_TYPES`. `auto` is a regression if every label is a number and
            at least one is not an integer literal.

    Raises:
        InputError: If labels cannot be right. The message gives file and line.
    """
    columns, labels = train.layout.texts, set(train.columns[-1])
    if problem_type == "auto":
        _refuse_units(train)
        _refuse_odd_labels(train)
        if all(map(is_number, labels)) and not all(map(is_integer, labels)):
            problem_type = "regression"
            _refuse_two_spellings(train)
    if problem_type == "regression":
        return describe_task(columns, None)
    if problem_type == "auto" and (groups := find_alike(labels)):
        raise _describe_alike(train, groups[0])
    if len(labels) == 1:
        raise InputError(
            f"{train.path}: every row has the label {quote(labels.pop())}. Give rows of two or more"
        )
    return describe_task(columns, _sort_labels(labels))


def note_task(task: TextTask, train: Table) -> list[str]:
    """Return notes on the inferred task, and on labels that may be slips."""
    kind = "regression" if task.is_regression else f"classification into {task.num_labels} labels"
    columns = " and ".join(task.columns)
    name = train.path.name
    notes = [f"{kind} of {columns}, told from {name}; --problem-type overrides"]
    labels = train.columns[-1]
    if task.labels is None:
        if all(float(label).is_integer() for label in labels):
            notes.append(
                f"every score in {name} is a whole number; if they are classes, give "
                "--problem-type single_label_classification"
            )
        return notes
    for first, second in find_alike(set(task.labels)):
        notes.append(f"labels {quote(first)} and {quote(second)} are kept apart as two classes")
    for label in filter(may_be_missing, task.labels):
        rows = count_word(labels.count(label), "row")
        notes.append(
            f"label {quote(label)} of {rows} in {name} is a class like any other. Remove those "
            "rows if it stands for a missing label"
        )
    names = [label for label in task.labels if not is_number(label)]
    if names and _share_numbers(labels) >= HALF:
        notes.append(f"most labels in {name} are numbers; these are not: {quote_all(names)}")
    if 2 * task.num_labels > len(labels) > 20:
        notes.append(
            f"{task.num_labels} different labels in {len(labels)} rows: see that "
            f"{quote(train.layout.columns[-1])} is the column meant, or name it by --label-column"
        )
    return notes


def find_alike(labels: set[str]) -> list[tuple[str, str]]:
    """Find pairs of labels that differ only by blanks, quotes, case, width or spelling."""
    groups = defaultdict(list)
    for label in sorted(labels):
        groups[fold(label)].append(label)
    return [(first, other) for first, *others in groups.values() for other in others]


def _refuse_odd_labels(train: Table) -> None:
    """Refuse labels that are no numbers among numbers: they are slips, not class names."""
    labels = train.columns[-1]
    odd = [row for row, label in enumerate(labels) if not is_number(label)]
    if odd and _are_slips({labels[row] for row in odd}, labels):
        count = len(labels) - len(odd)
        others = (
            f"{count} of {len(labels)} labels are numbers"
            if count
            else "the others look like some too"
        )
        raise describe_rows(
            train,
            odd,
            f"label {quote(labels[odd[0]])} is no number, and {others}",
            "correct it or remove the row, or give --problem-type single_label_classification if "
            "every label is the name of a class",
        )


def _refuse_units(train: Table) -> None:
    """Refuse numbers with a unit if most labels have one: they would become class names."""
    labels = train.columns[-1]
    rows = [row for row, label in enumerate(labels) if has_unit(label)]
    if len(rows) > HALF * len(labels):
        raise describe_rows(
            train,
            rows,
            f"label {quote(labels[rows[0]])} is a number with a unit",
            "Write bare numbers, or give --problem-type single_label_classification if every label "
            "is the name of a class",
        )


def _are_slips(odd: set[str], labels: Sequence[str]) -> bool:
    """Return whether labels that are no numbers are slips among these labels; see `MOSTLY`."""
    share = _share_numbers(labels)
    if all(may_be_missing(label) or _is_misspelt(label) for label in odd):
        return share >= HALF
    has_fractions = any(is_number(label) and not is_integer(label) for label in set(labels))
    return share > HALF if has_fractions else share >= MOSTLY


def _is_misspelt(label: str) -> bool:
    return has_decimal_comma(label) or has_other_signs(label)


def _share_numbers(labels: Sequence[str]) -> float:
    """Return the share of numbers among rows or among different labels, whichever is larger."""
    return max(
        sum(is_number(label) or _is_misspelt(label) for label in group) / len(group)
        for group in (labels, set(labels))
    )


def _refuse_two_spellings(train: Table) -> None:
    """Refuse whole numbers if one of them has two spellings: they may be classes or scores."""
    labels = set(train.columns[-1])
    groups = find_alike(labels)
    if groups and all(float(label).is_integer() for label in labels):
        raise _describe_alike(train, groups[0])


def _describe_alike(train: Table, pair: Sequence[str]) -> InputError:
    """Describe two labels that look alike, at the first row of the rarer one."""
    labels = train.columns[-1]
    rare, common = sorted(pair, key=labels.count)
    return InputError(
        f"{train.locate(labels.index(rare))}: label {quote(rare)} (rows: {labels.count(rare)}) "
        f"differs from {quote(common)} (rows: {labels.count(common)}, the first on line "
        f"{train.lines[labels.index(common)]}) by blanks, quotes, case, width or spelling only. "
        "Write both alike, or give --problem-type single_label_classification for two classes"
    )


def _sort_labels(labels: set[str]) -> tuple[str, ...]:
    if all(map(is_integer, labels)):
        # float: int() refuses thousands of digits.
        return tuple(sorted(labels, key=lambda label: (float(label), label)))
    return tuple(sorted(labels))
