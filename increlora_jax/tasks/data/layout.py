"""Possible columns of a file, and the choice of those that a task reads."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from increlora_jax.errors import InputError
from increlora_jax.tasks.data.records import quote, quote_all

LABEL_COLUMNS = ("label", "labels")


@dataclass(frozen=True)
class Layout:
    """A layout of the columns that a task reads.

    Attributes:
        columns: The columns to read, in the task's order: its texts, then its label.
        headless: For a file without a header line: all of its columns, in the order of the file.
        skips_broken_rows: Whether rows of another width than the header are skipped and counted;
            otherwise they are errors.
        is_labelled: Whether the last of the columns is the label.
    """

    columns: tuple[str, ...]
    headless: tuple[str, ...] = ()
    skips_broken_rows: bool = False
    is_labelled: bool = True

    @property
    def texts(self) -> tuple[str, ...]:
        """The text columns."""
        return self.columns[:-1] if self.is_labelled else self.columns

    def without_label(self) -> "Layout":
        """Return the layout of a file with the texts alone."""
        return replace(self, columns=self.texts, headless=(), is_labelled=False)


@dataclass(frozen=True)
class Columns:
    """Column names given by the user.

    Raises:
        InputError: If the names exclude each other.

    Attributes:
        texts: The one or two text columns of `--text-column`; empty: not given.
        label: The label column of `--label-column`; None: not given.
    """

    texts: tuple[str, ...] = ()
    label: str | None = None

    def __post_init__(self) -> None:
        """Check the names."""
        names = [*self.texts, *([] if self.label is None else [self.label])]
        if "" in names:
            raise InputError("--text-column and --label-column need names that are not empty")
        if len(self.texts) > 2:
            raise InputError(
                f"--text-column {' '.join(self.texts)}: one text or two are read. Name one or two"
            )
        if len(set(names)) < len(names):
            raise InputError(
                f"--text-column and --label-column: {quote_all(names)} name a column twice. Name "
                "each once"
            )

    def check_number(self, reader: str, number: int) -> None:
        """Raise an InputError unless the user names as many text columns as `number`, or none."""
        if self.texts and len(self.texts) != number:
            raise InputError(
                f"--text-column {' '.join(self.texts)}: {reader} reads {number} of them. Name as "
                "many"
            )

    def make_layouts(self, texts: Sequence[tuple[str, ...]]) -> list[Layout]:
        """List the layouts for the user's column names; without them, one for each of `texts`.

        Raises:
            InputError: If the label column is one of the text columns.
        """
        labels = LABEL_COLUMNS if self.label is None else (self.label,)
        layouts = [
            Layout((*names, label))
            for names in ([self.texts] if self.texts else texts)
            for label in labels
            if label not in names
        ]
        if not layouts:
            raise InputError(
                f"--label-column {self.label}: that is one of the text columns. Name the column of "
                "the labels, or the texts by --text-column"
            )
        return layouts


def choose_layout(
    where: str, first: list[str], layouts: Sequence[Layout]
) -> tuple[Layout, list[str]]:
    """Return the first layout that fits a file's first record, and the file's header.

    Raises:
        InputError: If no layout fits.
    """
    for layout in layouts:
        if layout.headless:
            if len(first) == len(layout.headless) and not set(first) & set(layout.columns):
                return layout, list(layout.headless)
        elif set(layout.columns) <= set(first):
            _refuse_repeated_columns(where, first, layout)
            return layout, first
    raise describe_missing_columns(where, first, layouts)


def _refuse_repeated_columns(where: str, header: list[str], layout: Layout) -> None:
    for name in layout.columns:
        if header.count(name) > 1:
            raise InputError(
                f"{where}: more than one column is called {quote(name)}. Rename all but one"
            )


def describe_missing_columns(
    where: str, columns: list[str], layouts: Sequence[Layout]
) -> InputError:
    """Return an error about a file that fits no layout, with the closest layouts."""
    present = {name.strip().lower() for name in columns}
    has_labels = any(layout.is_labelled for layout in layouts)
    shared = [len(set(layout.columns) & present) for layout in layouts]
    closest = [
        layout.columns
        for layout, count in zip(layouts, shared, strict=True)
        if count == max(shared)
    ]
    # Layouts that differ only by the label's name: the first serves as an example.
    examples = {names[:-1] if has_labels else names: names for names in reversed(closest)}
    accepted = " or ".join(map(quote_all, reversed(examples.values())))
    flags = "--text-column and --label-column" if has_labels else "--text-column"
    return InputError(
        f"{where}: the columns here are {quote_all(columns)}, the needed ones are {accepted}. "
        f"Name the columns so, or say which they are by {flags}" + _suspect_separator(columns)
    )


_SEPARATORS = {"\t": ("tabs", ".tsv"), ",": ("commas", ".csv"), ";": ("semicolons", ".csv")}


def _suspect_separator(columns: list[str]) -> str:
    """Return a guess why the whole header is one column."""
    if any("\r" in name for name in columns):
        return " (it may be that its lines end in a carriage return alone; end them in a line feed)"
    for separator, (name, suffix) in _SEPARATORS.items():
        if len(columns) == 1 and separator in columns[0]:
            return f" (it may be that {name} separate the columns; end the file's name in {suffix})"
    return ""
