"""Code of a user, by the name that a flag gives it."""

from importlib import import_module
from typing import Any

from increlora_jax.errors import InputError


def load_code(flag: str, reference: str) -> Any:
    """Import the module of `package.module:name` and return its object of that name.

    The import runs the module's code. Commands call this function only for names from a flag.

    Raises:
        InputError: the module cannot be imported, or has no such name.
    """
    module, _, name = reference.partition(":")
    try:
        found = import_module(module)
    except Exception as error:
        raise InputError(
            f"{flag} {reference}: {module} cannot be imported ({type(error).__name__}: {error}). "
            "Check the name, and that the module is in this folder or on PYTHONPATH"
        ) from error
    if not hasattr(found, name):
        raise InputError(f"{flag} {reference}: {module} has no {name}. Check the name")
    return getattr(found, name)
