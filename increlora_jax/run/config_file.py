"""Settings from a YAML file: known keys with plain values, and no other features of YAML."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin

import yaml

from increlora_jax.errors import InputError, suggest
from increlora_jax.files.bounded import read_bounded
from increlora_jax.values import convert, kinds_in, show

MAX_BYTES = 1 << 17
_NULL = "tag:yaml.org,2002:null"
_LIST = "tag:yaml.org,2002:seq"
_WORDS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "timestamp")}
"""YAML's tags for untagged values; the kind of the setting decides instead."""


class Setting(NamedTuple):
    """A value with the file and line that it comes from."""

    value: Any
    where: str


def read_settings(path: Path, kinds: Mapping[str, Any]) -> dict[str, Setting]:
    """Read the settings of a file; a null value becomes None.

    Args:
        path: The YAML file.
        kinds: The annotation of each known key: str, int, float, bool, Literal, list[str] or None.

    Raises:
        InputError: If the file cannot be read, is not YAML, or holds anything else. The message
            gives file, line and key.
    """
    settings: dict[str, Setting] = {}
    for key, node in _list_entries(path):
        where = f"{path}:{key.start_mark.line + 1}"
        name = key.value if isinstance(key, yaml.ScalarNode) else "a key that is not text"
        if name not in kinds:
            hint = suggest(name, kinds) or "; the keys are the flags' names"
            raise InputError(f"{where}: unknown key {show(name)}{hint}")
        if name in settings:
            raise InputError(f"{where}: {name} appears twice. Keep one")
        try:
            settings[name] = Setting(_convert(node, kinds[name]), where)
        except ValueError as error:
            raise InputError(f"{where}: {name}: {error}") from None
    return settings


class _Loader(yaml.SafeLoader):
    """A YAML loader without aliases, which settings never need."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="an alias. Write the value out", problem_mark=mark)
        return super().compose_node(parent, index)


def _list_entries(path: Path) -> Iterator[tuple[yaml.Node, yaml.Node]]:
    try:
        text = read_bounded(path, MAX_BYTES).decode()
        root = yaml.compose(text, _Loader)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} cannot be read: {error}. Save it as UTF-8") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InputError(f"{path}:{line}: not YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not YAML: {error}") from None
    if not isinstance(root, yaml.MappingNode):
        raise InputError(f"{path} must hold `key: value` lines")
    yield from root.value


def _convert(node: yaml.Node, kind: Any) -> Any:
    """Convert a YAML node to a value of the setting's kind."""
    if node.tag == _NULL:
        return None
    [list_kind] = [k for k in kinds_in(kind) if get_origin(k) is list] or [None]
    if list_kind is None:
        return _convert_word(node, kind)
    words = node.value if node.tag == _LIST else [node]
    if not words:
        raise ValueError("must be a plain value or a list of them, not an empty list")
    return [_convert_word(word, *get_args(list_kind)) for word in words]


def _convert_word(node: yaml.Node, kind: Any) -> Any:
    if not isinstance(node, yaml.ScalarNode) or node.tag not in _WORDS:
        raise ValueError("must be a plain value, or a list of them if the setting takes several")
    return convert(node.value, kind)
