"""The runs that train together, as `--seeds` and `--sweep` ask for them."""

from dataclasses import fields, replace
from itertools import product
from typing import Any, NamedTuple, get_type_hints

from increlora_jax.config import VARIABLE, RunConfig, TrainingConfig
from increlora_jax.errors import InputError

_KINDS = {
    name: kind
    for group in get_type_hints(RunConfig).values()
    for name, kind in get_type_hints(group).items()
}


class Member(NamedTuple):
    """One of the runs, with the configuration with which it would train alone.

    `name` is that of its folder within the whole's, empty where there is one run only. `settings`
    are those that `--sweep` gives it, and `variant` is its name without the seed.
    """

    name: str
    config: RunConfig
    variant: str
    settings: dict[str, Any]


def members_of(config: RunConfig) -> tuple[Member, ...]:
    """List the runs, one for every combination, the first seed's first; one alone is `config`.

    Raises:
        InputError: `--seeds` or `--sweep` cannot be understood, or asks for what cannot differ.
    """
    axes = _parse_axes(config.training)
    if not axes:
        return (Member("", config, "", {}),)
    chosen = [dict(zip(axes, texts, strict=True)) for texts in product(*axes.values())]
    if len(chosen) == 1:
        flags = " ".join(f"--{name} {text}" for name, text in chosen[0].items())
        raise InputError(f"--seeds and --sweep ask for one run only; give {flags} instead")
    return tuple(_make_member(config, texts) for texts in chosen)


def _parse_axes(training: TrainingConfig) -> dict[str, list[str]]:
    """The values, as they are written, of everything that differs."""
    axes = {}
    if training.seeds is not None:
        if training.seed != TrainingConfig.seed:
            raise InputError(f"--seed {training.seed} and --seeds {training.seeds}: give only one")
        axes["seed"] = _split(f"--seeds {training.seeds}", "seed", training.seeds)
    for word in training.sweep or []:
        flag, (name, _, values) = f"--sweep {word}", word.partition("=")
        name = name.strip().replace("-", "_")
        if name not in VARIABLE:
            raise InputError(
                f"{flag}: {name!r} cannot differ between runs that train together; what can is "
                f"{', '.join(VARIABLE)}, and the seed by --seeds"
            )
        if name in axes:
            raise InputError(f"{flag}: {name} is given twice; give all of its values at once")
        axes[name] = _split(flag, name, values)
    return axes


def _split(flag: str, name: str, values: str) -> list[str]:
    texts = [text.strip() for text in values.split(",")]
    try:
        numbers = [_KINDS[name](text) for text in texts]
    except ValueError as error:
        raise InputError(f"{flag}: {error}; give numbers with commas between them") from None
    if len(set(numbers)) < len(numbers):
        raise InputError(f"{flag}: one of them stands there twice")
    return texts


def _make_member(config: RunConfig, texts: dict[str, str]) -> Member:
    values = {name: _KINDS[name](text) for name, text in texts.items()}
    settings = {name: value for name, value in values.items() if name != "seed"}
    name, variant = _join(texts), _join({name: texts[name] for name in settings})
    values |= {"seeds": None, "sweep": None, "output_dir": f"{config.output_dir}/{name}"}
    groups = [getattr(config, group.name) for group in fields(config)]
    own = [
        replace(group, **{f.name: values[f.name] for f in fields(group) if f.name in values})
        for group in groups
    ]
    return Member(name, RunConfig(*own), variant, settings)


def _join(texts: dict[str, str]) -> str:
    return ",".join(f"{name}-{text}" for name, text in texts.items())
