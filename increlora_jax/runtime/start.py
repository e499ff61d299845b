"""First steps of a command, before the imports that take seconds."""

from increlora_jax.runtime.signals import leave_on_signals


def begin() -> None:
    """Make signals end the process with one line, and repair closed streams; call it once."""
    leave_on_signals()
    from increlora_jax.runtime.streams import accept_any_text, open_closed

    open_closed()
    accept_any_text()
