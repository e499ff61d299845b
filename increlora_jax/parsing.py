"""From a command line, a YAML file and a recipe to one configuration; and back to YAML."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

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
from increlora_jax.members import members_of
from increlora_jax.recipes import recipe
from increlora_jax.settings_file import read_settings

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
    file = parser.parse_args(argv).config
    settings = _read_values(Path(file)) if file else {}
    parser.set_defaults(**settings)
    known = parser.parse_args(argv)
    parser.set_defaults(**recipe(known.task, known.target_rank) | settings)
    return _build(vars(parser.parse_args(argv)))


def read_run(path: Path) -> RunConfig:
    """Read a resolved configuration, as `write_run` leaves it."""
    return _build(_read_values(path))


def write_run(config: RunConfig, path: Path) -> None:
    """Write every setting, resolved."""
    text = yaml.safe_dump(config.flat(), sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")


def _read_values(path: Path) -> dict[str, Any]:
    """Read the settings of a file, each within its bounds."""
    kinds = {name: kind for group in GROUPS for name, kind in get_type_hints(group).items()}
    settings = read_settings(path, kinds)
    for name, setting in settings.items():
        try:
            _build({name: setting.value})
        except InputError as error:
            raise InputError(f"{setting.where}: {error}") from None
    return {name: setting.value for name, setting in settings.items()}


def _build(values: Mapping[str, Any]) -> RunConfig:
    def group(kind: type) -> Any:
        return kind(**{f.name: values[f.name] for f in fields(kind) if f.name in values})

    config = RunConfig(*(group(kind) for kind in GROUPS))
    members_of(config)  # whatever is wrong with one of them is said where it was written
    return config
