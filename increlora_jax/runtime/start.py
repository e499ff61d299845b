"""The first thing a command does, before the imports that take seconds."""

from increlora_jax.runtime.signals import leave_on_signals
from increlora_jax.runtime.streams import accept_any_text, open_closed


def begin() -> None:
    """Make the process's streams sound, and its signals end it in one line; once a process."""
    open_closed()
    accept_any_text()
    leave_on_signals()
