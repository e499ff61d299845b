"""Runs that train together, as `--seeds` and `--sweep` describe them."""

from itertools import product
from typing import Any, NamedTuple

from increlora_jax.config import DEFAULTS, KINDS, VARIABLE, RunConfig
from increlora_jax.errors import InputError, suggest
from increlora_jax.values import convert, flag_of, kinds_in

_NUMBERS = {name: kinds_in(KINDS[name])[0] for name in ("seed", *VARIABLE)}
"""Kinds of the numbers that can differ between runs."""


class Member(NamedTuple):
    """One of the runs that train together.

    Attributes:
        name: of its folder within the folder of all; empty if there is one run only.
        config: the configuration with which it would train alone.
        variant: its name without the seed.
        settings: its values of the settings in `--sweep`.
    """

    name: str
    config: RunConfig
    variant: str
    settings: dict[str, Any]


def members_of(config: RunConfig) -> tuple[Member, ...]:
    """List the runs, one for every combination, the first seed's first; a single run is `config`.

    Raises:
        InputError: `--seeds` or `--sweep` cannot be parsed, or names a setting that cannot differ.
    """
    axes = _parse_axes(config)
    if not axes:
        return (Member("", config, "", {}),)
    chosen = [dict(zip(axes, texts, strict=True)) for texts in product(*axes.values())]
    if len(chosen) == 1:
        flags = " ".join(f"--{name} {text}" for name, text in chosen[0].items())
        raise InputError(f"--seeds and --sweep ask for one run only. Give {flags} instead")
    return tuple(_make_member(config, texts) for texts in chosen)


def swept_names(seeds: str | None, sweep: list[str] | None) -> dict[str, str]:
    """Return the settings that differ between runs, each with its flag."""
    flags = {} if seeds is None else {"seed": f"--seeds {seeds}"}
    for word in sweep or []:
        name = word.partition("=")[0].strip().replace("-", "_")
        if name not in VARIABLE:
            raise InputError(
                f"--sweep {word}: {name!r} cannot differ between runs that train together"
                f"{suggest(name, VARIABLE)}. Choose from {', '.join(VARIABLE)}, and the seed by "
                "--seeds"
            )
        if name in flags:
            raise InputError(f"--sweep {word}: {name} is given twice. Give all its values at once")
        flags[name] = f"--sweep {word}"
    return flags


def _parse_axes(config: RunConfig) -> dict[str, list[str]]:
    """Return the values of all settings that differ, as the user wrote them."""
    training, values = config.training, config.flat()
    axes = {}
    for name, flag in swept_names(training.seeds, training.sweep).items():
        if values[name] != DEFAULTS[name]:
            raise InputError(f"{flag_of(name)} {values[name]} and {flag}: give only one")
        given = training.seeds if name == "seed" else flag.partition("=")[2]
        axes[name] = _split(flag, name, given or "")
    return axes


def _split(flag: str, name: str, values: str) -> list[str]:
    texts = [text.strip() for text in values.split(",")]
    try:
        numbers = [convert(text, _NUMBERS[name]) for text in texts]
    except ValueError as error:
        raise InputError(f"{flag}: {error}. Give numbers with commas between them") from None
    if len(set(numbers)) < len(numbers):
        raise InputError(f"{flag}: a value is given twice. Leave one out")
    return texts


def _make_member(config: RunConfig, texts: dict[str, str]) -> Member:
    values = {name: convert(text, _NUMBERS[name]) for name, text in texts.items()}
    settings = {name: value for name, value in values.items() if name != "seed"}
    name, variant = _join(texts), _join({name: texts[name] for name in settings})
    values |= {"seeds": None, "sweep": None, "output_dir": f"{config.output_dir}/{name}"}
    return Member(name, config.changed(values), variant, settings)


def _join(texts: dict[str, str]) -> str:
    return ",".join(f"{name}-{text}" for name, text in texts.items())
