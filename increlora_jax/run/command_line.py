"""A configuration from a command line, YAML files and a recipe; and its way back to YAML."""

from argparse import SUPPRESS
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

import yaml

from increlora_jax.config import (
    GROUPS,
    KINDS,
    GrowthConfig,
    RunConfig,
    TaskConfig,
)
from increlora_jax.errors import InputError
from increlora_jax.run.config_file import Setting, read_settings
from increlora_jax.run.flags import SWITCH, Parser, path, type_of
from increlora_jax.run.idle import idle_settings
from increlora_jax.run.recipes import FOLLOWS_LENGTH, RECIPES, recipe
from increlora_jax.run.sweep import members_of, swept_names
from increlora_jax.runtime.streams import write_result
from increlora_jax.values import Reference, convert, flag_of, kinds_in

_METAVARS = {int: "N", float: "X", str: "TEXT"}
_DESCRIPTION = """\
Fine-tune a model with IncreLoRA. To try it: --task demo.

A flag without a value in this list is a switch: --packing turns it on, --no-packing off.
A default with a star is another one for --task demo, for squad and for GLUE tasks, which
take the paper's; --print-config shows the settings of a run.
"""


_OF_EVERY_RUN = ("task", "model", "method")
"""Settings without which a saved configuration could be mistaken for another run's."""


class Command(NamedTuple):
    """A training command: its settings, whether it only describes the run, and its notes."""

    config: RunConfig
    is_dry: bool
    notes: tuple[str, ...]


def parse_command(argv: Sequence[str] | None = None) -> Command:
    """Resolve a command line: flags win over `--config`, which wins over the task's recipe.

    `--help`, `--version` and `--print-config` end the process.

    Raises:
        InputError: If a flag or a key of a file is unknown, wrong, or also set by a sweep.
    """
    given = vars(train_parser().parse_flags(argv))
    files = given.pop("config", ())
    is_shown, is_dry = given.pop("print_config"), given.pop("dry_run")
    flags = {name: Setting(value, flag_of(name)) for name, value in given.items()}
    settings = {
        name: Setting(setting.value, f"{setting.where}: {name}")
        for file in files
        for name, setting in _read_settings(file).items()
    }
    # Null in a file removes an earlier file's value.
    settings = {name: setting for name, setting in settings.items() if setting.value is not None}
    config = _resolve(settings | flags)
    _check_code(config, settings, given)
    if is_shown:
        write_result(describe_run(config).rstrip())
        raise SystemExit
    idle = idle_settings(config)
    notes = [f"{flag_of(n)} has no effect with {idle[n]}" for n in given if n in idle]
    return Command(config, is_dry, tuple(notes))


def parse_run(argv: Sequence[str] | None = None) -> RunConfig:
    """Resolve a command line to its settings alone."""
    return parse_command(argv).config


def train_parser() -> Parser:
    """Return the parser of the training command, with one flag for every setting."""
    parser = Parser("train", _DESCRIPTION)
    add = parser.others.add_argument
    add("--config", metavar="FILE.yaml", type=path, action="append", default=[],
        help="settings by name; flags win, and so do later files")  # fmt: skip
    add("--print-config", action="store_true", help="print all settings as such a file and exit")
    add("--dry-run", action="store_true", help="show data, plan and memory and exit; no files")
    starred = {
        name for task in (*RECIPES, "demo") for name in recipe(task, GrowthConfig.target_rank)
    }
    for group in GROUPS:
        section: Any = None
        for field in fields(group):
            if field.name in group.sections:
                section = parser.add_argument_group(group.sections[field.name])
            _add_flag(section, field, KINDS[field.name], "*" if field.name in starred else "")
    return parser


def read_run(path: Path) -> RunConfig:
    """Read a resolved configuration, as `write_run` writes it.

    Raises:
        InputError: If a key is unknown or wrong, or a key of every run is missing.
    """
    found = _read_settings(path).items()
    values = {name: setting.value for name, setting in found if setting.value is not None}
    if missing := [name for name in _OF_EVERY_RUN if name not in values]:
        raise InputError(f"{path}: {missing[0]} is missing. Restore the run's own value")
    # Files of older runs also hold a value for swept settings, which never had an effect.
    swept = swept_names(values.get("seeds"), values.get("sweep"))
    return _build({name: value for name, value in values.items() if name not in swept})


def write_run(config: RunConfig, path: Path) -> None:
    """Write every setting, resolved, except those that a sweep sets."""
    path.write_text(_as_yaml(config), encoding="utf-8")


def describe_run(config: RunConfig) -> str:
    """Return YAML from which the same run is resolved on the same data.

    Settings of a sweep are left out. Settings fitted to the run are in a comment.
    """
    values = config.flat()
    fitted = ", ".join(f"{name} {values[name]}" for name in values if name in config.unsaid)
    comment = f"# fitted to the run, since nobody gave them: {fitted}\n" if fitted else ""
    return comment + _as_yaml(config, config.unsaid)


def _as_yaml(config: RunConfig, left_out: Iterable[str] = ()) -> str:
    skipped = {*swept_names(config.training.seeds, config.training.sweep), *left_out}
    values = {name: value for name, value in config.flat().items() if name not in skipped}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _add_flag(section: Any, field: Field[Any], kind: Any, star: str) -> None:
    """Add a setting's flag to a section of the help, for a switch also its `--no-` flag.

    Args:
        section: The section of the parser.
        field: The setting.
        kind: Its annotation.
        star: Whether the flag takes several words.
    """
    flag = flag_of(field.name)
    options: dict[str, Any] = {"dest": field.name, "default": SUPPRESS}
    options["help"] = _explain(field, kind, star).replace("%", "%%")
    if bool in kinds_in(kind):
        metavar = SWITCH if kind is bool else "auto"
        section.add_argument(
            flag, nargs="?", const=True, type=type_of(kind), metavar=metavar, **options
        )
        off = {"action": "store_const", "const": False, **options, "help": SUPPRESS}
        section.add_argument(flag_of(f"no_{field.name}"), **off)
        return
    first = kinds_in(kind)[0]
    if get_origin(first) is list:
        kind = first = get_args(first)[0]
        options |= {"nargs": "+", "action": "extend"}
    metavar = _METAVARS.get(first, "NAME")
    section.add_argument(flag, type=type_of(kind), metavar=metavar, **options)


def _explain(field: Field[Any], kind: Any, star: str) -> str:
    """Return a setting's line of help: its meaning, its choices and its default."""
    choices = [word for k in kinds_in(kind) if get_origin(k) is Literal for word in get_args(k)]
    choices += ["package.module:name"] if Reference in kinds_in(kind) else []
    default = field.default
    notes = [", ".join(choices)] if len(choices) > 1 else []
    if bool in kinds_in(kind) and type(default) is bool:
        notes += [f"on; {flag_of(f'no_{field.name}')} turns it off"] if default else []
    elif default is not None:
        notes += [
            f"default {default:g}{star}" if type(default) is float else f"default {default}{star}"
        ]
    return field.metadata["help"] + (f" ({'; '.join(notes)})" if notes else "")


def _check_code(
    config: RunConfig, settings: Mapping[str, Setting], given: Mapping[str, Any]
) -> None:
    """Check that a flag, not only a file, names every reference to a user's code.

    Raises:
        InputError: If only a file names the code.
    """
    for name, value in config.flat().items():
        if Reference in kinds_in(KINDS[name]) and ":" in value and name not in given:
            raise InputError(
                f"{settings[name].where} {value} is code, which files alone cannot run. If you "
                f"trust it, give {flag_of(name)} {value} as well"
            )


def _resolve(settings: Mapping[str, Setting]) -> RunConfig:
    values = {name: setting.value for name, setting in settings.items()}
    swept = swept_names(values.get("seeds"), values.get("sweep"))
    for name in swept.keys() & values.keys():
        where = settings[name].where
        raise InputError(f"{where} {values[name]} and {swept[name]}: give only one")
    chosen = recipe(
        values.get("task", TaskConfig.task), values.get("target_rank", GrowthConfig.target_rank)
    )
    given = swept.keys() | values.keys()
    free = {
        name: convert(str(value), KINDS[name])
        for name, value in chosen.items()
        if name not in given
    }
    config = _build(free | values)
    for name in swept.keys() & (idle := idle_settings(config)).keys():
        raise InputError(
            f"{swept[name]}: {name} has no effect with {idle[name]}, so all runs would be the same"
        )
    unsaid = {*FOLLOWS_LENGTH} & free.keys() | {"max_seq_length"} - given
    return replace(config, unsaid=frozenset(unsaid))


def _read_settings(file: Path) -> dict[str, Setting]:
    """Read the settings of a file and check each one's bounds.

    Files of older versions have `tensorboard` instead of `report_to`.
    """
    settings = read_settings(file, KINDS | {"tensorboard": bool})
    if (old := settings.pop("tensorboard", None)) is not None and old.value:
        settings.setdefault("report_to", Setting(["tensorboard"], old.where))
    for name, setting in settings.items():
        try:
            _build({} if setting.value is None else {name: setting.value})
        except InputError as error:
            raise InputError(f"{setting.where}: {error}") from None
    return settings


def _build(values: Mapping[str, Any]) -> RunConfig:
    def group(kind: type) -> Any:
        return kind(**{f.name: values[f.name] for f in fields(kind) if f.name in values})

    config = RunConfig(*(group(kind) for kind in GROUPS))
    members_of(config)  # errors in one of the runs are reported here, with their flag
    return config
