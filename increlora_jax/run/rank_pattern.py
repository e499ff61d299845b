"""Ranks of modules from the file of another run."""

from pathlib import Path

from increlora_jax.config import RunConfig
from increlora_jax.errors import InputError
from increlora_jax.files.json_object import read_json_object
from increlora_jax.files.kinds import check_keys

RANKS = "ranks"
"""The key of the ranks in `results.json` and in an adapter's configuration."""


def resolve_pattern(config: RunConfig) -> RunConfig:
    """Return the configuration with the ranks themselves in place of their file's name.

    Raises:
        InputError: If the file has no ranks.
    """
    words = config.pattern.rank_pattern
    if words is None or len(words) != 1 or not words[0].endswith(".json"):
        return config
    path = Path(words[0]).expanduser()
    content = read_json_object(path, allow_nan=True)
    if RANKS not in content:
        raise InputError(
            f"--rank-pattern {path}: no ranks are here. Name the results.json of a run"
        )
    check_keys(path, {RANKS: content[RANKS]}, {RANKS: dict[str, int]})
    ranks = [f"{name}={rank}" for name, rank in content[RANKS].items()]
    return config.changed({"rank_pattern": ranks})
