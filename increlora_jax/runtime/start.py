"""First steps of a command, before the imports that take seconds."""

import time

from increlora_jax.runtime.signals import leave_on_signals

_BEGAN: list[float] = []


def begin() -> None:
    """Make signals end the process with one line, and repair closed streams; call it once."""
    _BEGAN.append(time.perf_counter())
    leave_on_signals()
    from increlora_jax.runtime.streams import accept_any_text, open_closed

    open_closed()
    accept_any_text()


def take_import_seconds() -> float:
    """Return the seconds since `begin`, which the imports took; 0 for a call from Python."""
    return time.perf_counter() - _BEGAN.pop() if _BEGAN else 0.0
