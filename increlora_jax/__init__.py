"""IncreLoRA in JAX and Flax: low-rank fine-tuning whose rank grows during training."""

__version__ = "0.1.0"

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from increlora_jax.public import *  # noqa: F403


def __getattr__(name: str) -> Any:
    """Load the public names at the first use: commands handle signals and flags before that."""
    import increlora_jax.public

    public = increlora_jax.public
    globals().update({known: getattr(public, known) for known in public.__all__})
    globals()["__all__"] = public.__all__
    if name not in globals():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals()[name]


def __dir__() -> list[str]:
    """List all names, including the public ones."""
    __getattr__("__all__")
    return sorted(globals())
