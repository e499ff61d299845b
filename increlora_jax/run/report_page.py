"""The report of runs: one HTML file that loads nothing, and its charts as PNG files."""

import os
from collections.abc import Sequence
from pathlib import Path

from increlora_jax.errors import InputError, WriteError
from increlora_jax.files.replace import replace_file
from increlora_jax.page.html import render
from increlora_jax.page.parts import Page, Part, Section
from increlora_jax.page.png import check_drawing, list_drawings, save_drawing
from increlora_jax.run.history import Group, read_groups
from increlora_jax.run.report_charts import (
    Take,
    draw_curves,
    draw_importance,
    draw_parameters,
    draw_phases,
    draw_ranks,
    draw_rates,
    draw_total_rank,
)
from increlora_jax.run.report_tables import (
    show_configuration,
    show_environment,
    show_headline,
    show_speed,
)
from increlora_jax.runtime.streams import tell

SUFFIXES = (".html", ".htm")


def write_report(folders: Sequence[Path], output: Path) -> None:
    """Write the report of runs, which may still be training, as one HTML file.

    Raises:
        InputError: If a folder holds no run, or one of its files is damaged.
        WriteError: If the file cannot be written. The previous file is unchanged.
    """
    save_page(build_page(read_groups(folders)), output)


class LiveReport:
    """Report of a run that trains, written anew after every evaluation.

    The report is a convenience: if it cannot be written, a note says so once.
    """

    def __init__(self, folder: Path, output: Path):
        self._folder = folder
        self._output = output
        self._has_failed = False

    def refresh(self) -> None:
        """Write the report of the run as far as it has come."""
        if self._has_failed:
            return
        try:
            write_report([self._folder], self._output)
        except (InputError, WriteError) as error:
            self._has_failed = True
            tell(f"note: --report ends here: {error}")


def save_page(page: Page, output: Path) -> None:
    """Write a page as HTML, whole or not at all; its folder is created.

    Raises:
        WriteError: If it cannot be written.
    """
    text = render(page)
    _make_folder(output.absolute().parent)
    with replace_file(output) as aside:
        aside.write_text(text, encoding="utf-8")


def save_charts(page: Page, folder: Path) -> int:
    """Write every chart of a page as a PNG file; return their number.

    Raises:
        InputError: If matplotlib is not installed.
        WriteError: If a file cannot be written.
    """
    check_drawing()
    _make_folder(folder)
    drawings = list_drawings(page)
    for name, part in drawings:
        with replace_file(folder / name) as aside:
            save_drawing(part, aside)
    return len(drawings)


def check_places(output: Path, png: Path | None) -> None:
    """Check the name and place of a report, before any work.

    Raises:
        InputError: If the report cannot be written there.
    """
    if output.suffix.lower() not in SUFFIXES:
        raise InputError(f"--output {output}: not the name of an HTML file. End it in .html")
    if output.is_dir():
        raise InputError(f"--output {output}: is a folder. Name a file in it, as report.html")
    if png is not None:
        if os.path.lexists(png) and not png.is_dir():
            raise InputError(f"--png {png}: is a file, not a folder. Name another")
        check_drawing()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(
            f"{folder} cannot be created: {error.strerror}. Choose another folder"
        ) from error


def build_page(groups: Sequence[Group]) -> Page:
    """Return the page of all runs."""
    folders = list(dict.fromkeys(group.folder for group in groups))
    names = [folder.absolute().name for folder in folders]
    title = names[0] if len(names) == 1 else f"{len(names)} runs: {', '.join(names)}"
    sections = (
        _section("Headline", [show_headline(groups)]),
        _section("Training", _draw_training(groups)),
        _section("Ranks", _draw_growth(groups)),
        _section("Learning rate", [draw_rates(group) for group in groups]),
        _section("Speed and padding", [show_speed(groups), *draw_phases(groups)]),
        _section("Configuration", [show_configuration(groups)]),
        _section("Environment", [show_environment(groups)]),
    )
    found = [section for section in sections if section is not None]
    return Page(f"Report of {title}", _say_subtitle(groups), found)


def _section(title: str, parts: Sequence[Part | None]) -> Section | None:
    found = [part for part in parts if part is not None]
    return Section(title, found) if found else None


def _draw_training(groups: Sequence[Group]) -> list[Part | None]:
    metrics = dict.fromkeys(n for group in groups for m in group.members for n in m.dev)
    return [
        _draw_train(groups, "loss", "Training loss", "loss"),
        *(
            draw_curves(groups, f"{name} on dev", name, _take_metric(name), has_dots=True)
            for name in metrics
        ),
        _draw_train(groups, "grad_norm", "Gradient norm", "norm before clipping"),
        _draw_train(groups, "orth_loss", "Orthogonality term", "mean ‖P − I‖"),
    ]


def _take_metric(name: str) -> Take:
    return lambda history: history.dev.get(name, {})


def _draw_train(groups: Sequence[Group], name: str, title: str, unit: str) -> Part | None:
    return draw_curves(groups, title, unit, lambda h: h.train.get(name, {}), is_noisy=True)


def _draw_growth(groups: Sequence[Group]) -> list[Part | None]:
    return [
        draw_total_rank(groups),
        draw_parameters(groups),
        *(draw_ranks(group) for group in groups),
        *(draw_importance(group) for group in groups),
    ]


def _say_subtitle(groups: Sequence[Group]) -> str:
    """Return tasks, methods and models of all runs, each once."""
    configs = [member.config for group in groups for member in group.members]
    words = [", ".join(dict.fromkeys(str(c[name]) for c in configs))
             for name in ("task", "method", "model")]  # fmt: skip
    running = sum(group.is_running for group in groups)
    state = [f"{running} of {len(groups)} unfinished" if len(groups) > 1 else "unfinished"]
    return " · ".join([*words, *(state if running else [])])
