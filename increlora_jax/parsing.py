"""From a command line, a YAML file and a recipe to one configuration; and back to YAML."""

import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from increlora_jax.config import (
    AdapterConfig,
    GrowthConfig,
    RunConfig,
    TaskConfig,
    TrainingConfig,
)
from increlora_jax.errors import InputError
from increlora_jax.recipes import recipe

GROUPS: Any = (TaskConfig, AdapterConfig, GrowthConfig, TrainingConfig)


class Parser(HfArgumentParser):
    """One flag a field, in both spellings; complaints are `InputError`s."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(GROUPS, allow_abbrev=False, **kwargs)
        self.add_argument("--config", metavar="FILE.yaml", help="settings by name; flags win")

    def error(self, message: str) -> NoReturn:
        """Raise instead of leaving, so that callers can say where the words came from."""
        raise InputError(message)


def parse_run(argv: Sequence[str] | None = None) -> RunConfig:
    """Resolve a command line: flags win over `--config`, which wins over the task's recipe."""
    parser = Parser(
        prog="python -m increlora_jax.train",
        description="Fine-tune a model with IncreLoRA.",
    )
    chosen = parser.parse_args(argv)
    file_words = _words_of_file(parser, Path(chosen.config)) if chosen.config else []
    words = [*file_words, *(sys.argv[1:] if argv is None else argv)]
    known = parser.parse_args(words)
    parser.set_defaults(**recipe(known.task, known.target_rank))
    return _build(parser.parse_args(words))


def read_run(path: Path) -> RunConfig:
    """Read a resolved configuration, as `write_run` leaves it."""
    parser = Parser()
    return _build(parser.parse_args(_words_of_file(parser, path)))


def write_run(config: RunConfig, path: Path) -> None:
    """Write every setting, resolved."""
    text = yaml.safe_dump(config.flat(), sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")


def _words_of_file(parser: Parser, path: Path) -> list[str]:
    """Turn a YAML file into the words of a command line, and check them by themselves."""
    settings = _read_yaml(path)
    names = {f.name for group in GROUPS for f in fields(group)}
    words: list[str] = []
    for key, value in settings.items():
        if key not in names:
            raise InputError(f"{path}: unknown key {key!r}; the keys are the flags' names")
        if value is None:
            continue
        values = value if isinstance(value, list) else [value]
        if not values or not all(isinstance(v, str | int | float | bool) for v in values):
            raise InputError(f"{path}: {key} must be a plain value or a list of them")
        # Joined, a value that begins with a dash is a value still; only lists cannot be.
        words += [f"--{key}", *map(str, value)] if value is values else [f"--{key}={value}"]
    try:
        parser.parse_args(words)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return words


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--config {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise InputError(f"--config {path} is not YAML: {error}") from None
    if not isinstance(settings, dict):
        raise InputError(f"--config {path} must hold `key: value` lines")
    return settings


def _build(chosen: Namespace) -> RunConfig:
    def group(kind: type) -> Any:
        return kind(**{f.name: getattr(chosen, f.name) for f in fields(kind)})

    return RunConfig(*(group(kind) for kind in GROUPS))
