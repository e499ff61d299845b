"""Settings from a YAML file: known keys and plain values of their kinds, nothing else of YAML."""

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
"""How YAML takes what is written without a tag; by which of them does not matter."""


class Setting(NamedTuple):
    """A value, and the file and line where it stands."""

    value: Any
    where: str


def read_settings(path: Path, kinds: Mapping[str, Any]) -> dict[str, Setting]:
    """Read the settings of a file; a null one holds None.

    `kinds` gives the annotation of every key there is: str, int, float, bool, Literal or list[str],
    or None.

    Raises:
        InputError: the file cannot be read, is no YAML, or holds anything else; with file, line,
            key.
    """
    settings: dict[str, Setting] = {}
    for key, node in _list_entries(path):
        where = f"{path}:{key.start_mark.line + 1}"
        name = key.value if isinstance(key, yaml.ScalarNode) else "a key that is no word"
        if name not in kinds:
            hint = suggest(name, kinds) or "; the keys are the flags' names"
            raise InputError(f"{where}: unknown key {show(name)}{hint}")
        if name in settings:
            raise InputError(f"{where}: {name} stands there twice; keep one")
        try:
            settings[name] = Setting(_convert(node, kinds[name]), where)
        except ValueError as error:
            raise InputError(f"{where}: {name}: {error}") from None
    return settings


class _Loader(yaml.SafeLoader):
    """Builds nodes, of which one settings file needs no two that are the same."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="an alias; write the value out", problem_mark=mark)
        return super().compose_node(parent, index)


def _list_entries(path: Path) -> Iterator[tuple[yaml.Node, yaml.Node]]:
    try:
        text = read_bounded(path, MAX_BYTES).decode()
        root = yaml.compose(text, _Loader)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} cannot be read: {error}; save it as UTF-8") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InputError(f"{path}:{line}: not YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not YAML: {error}") from None
    if not isinstance(root, yaml.MappingNode):
        raise InputError(f"{path} must hold `key: value` lines")
    yield from root.value


def _convert(node: yaml.Node, kind: Any) -> Any:
    """Turn what is written into a value of its kind, by the kind and not by the look of it."""
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
        raise ValueError("must be a plain value, or a list of them where there may be several")
    return convert(node.value, kind)
