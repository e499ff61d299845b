"""Files as chance or malice leaves them, and what readers may answer to them."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from increlora_jax.errors import InputError

QUICK, THOROUGH = 300, 20_000
"""Examples in continuous integration, and in a slow test."""

NUMBERS = st.one_of(
    st.integers(),
    st.sampled_from([0, -1, 2**31, 2**63, 10**30, 10**400]),
    st.floats(),
)
PLAIN = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=20))
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


def objects(known: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A sound object, some of whose keys are gone, changed, or joined by others."""
    changed = st.dictionaries(st.sampled_from(sorted(known)), VALUES, max_size=4)
    kept = st.sets(st.sampled_from(sorted(known))) | st.just(set(known))
    more = st.dictionaries(st.text(max_size=8), VALUES, max_size=2)
    return st.builds(
        lambda names, new, others: {n: known[n] for n in names} | new | others, kept, changed, more
    )


def jsons(known: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """Files of JSON, sound ones and others."""
    written = objects(known).map(lambda content: json.dumps(content).encode())
    return st.one_of(written, VALUES.map(lambda v: json.dumps(v).encode()), st.binary())


def yamls(known: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """Files of settings, sound ones and others."""
    written = objects(known).map(lambda content: yaml.safe_dump(content).encode())
    lines = st.lists(st.tuples(st.sampled_from(sorted(known)), st.text(max_size=12)), max_size=4)
    typed = lines.map(lambda pairs: "\n".join(f"{k}: {v}" for k, v in pairs).encode("utf-8"))
    return st.one_of(written, typed, st.text().map(str.encode), st.binary())


def headers() -> st.SearchStrategy[bytes]:
    """Safetensors files whose header is free to lie."""
    entry = st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "F16", "BF16", "BOOL", "I64", "F8_E4M3", "C64", ""]),
            "shape": st.lists(st.integers(-1, 4) | NUMBERS, max_size=3) | PLAIN,
            "data_offsets": st.lists(st.integers(-1, 32) | NUMBERS, max_size=3) | PLAIN,
        }
    )
    names = st.sampled_from(["a", "b", "__metadata__"]) | st.text(max_size=3)
    header = st.dictionaries(names, entry | VALUES, max_size=3)
    raw = header.map(lambda h: json.dumps(h).encode()) | st.binary(max_size=40)
    return st.builds(
        lambda text, body, more: struct.pack("<Q", max(0, len(text) + more)) + text + body,
        raw,
        st.binary(max_size=64),
        st.sampled_from([0, 0, 0, 1, -1, 2**40]),
    )


def damaged(sound: bytes) -> st.SearchStrategy[bytes]:
    """A sound file, a piece of which is overwritten, gone, or there more often."""
    place = st.integers(0, max(0, len(sound) - 1))
    return st.builds(
        lambda start, length, piece: sound[:start] + piece + sound[start + length :],
        place,
        st.integers(0, 9) | place,
        st.binary(max_size=9) | st.sampled_from([sound[:40], sound[-40:]]),
    )


def check_errors(
    files: st.SearchStrategy[bytes], path: Path, read: Callable[[], Any], examples: int
) -> int:
    """Read many files; returns how many were sound.

    Whatever but an `InputError` that names where the file lies comes out of here.
    """
    told: list[str] = []
    sound = 0

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(files)
    def look(content: bytes) -> None:
        nonlocal sound
        path.write_bytes(content)
        try:
            read()
        except InputError as error:
            told.append(str(error))
        else:
            sound += 1

    look()
    unnamed = [message for message in told if str(path.parent) not in message]
    assert not unnamed, unnamed[0]
    endless = [message for message in told if len(message) > 4000]
    assert not endless, endless[0]
    return sound
