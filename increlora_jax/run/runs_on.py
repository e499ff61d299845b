"""Versions and devices of a run, for its `results.json`."""

import platform
import sys
from typing import Any

import jax

PACKAGES = (
    "increlora_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax.checkpoint",
    "transformers",
    "numpy",
)


def list_versions() -> dict[str, str]:
    """Return the versions of the imported packages; a checkout may lack package metadata."""
    loaded = {name: getattr(sys.modules.get(name), "__version__", "unknown") for name in PACKAGES}
    return {"python": platform.python_version(), **loaded}


def describe_platform() -> dict[str, Any]:
    """Return the devices of all processes, and the system."""
    devices = jax.devices()
    return {
        "backend": jax.default_backend(),
        "device_kind": devices[0].device_kind,
        "devices": len(devices),
        "processes": jax.process_count(),
        "system": platform.platform(),
        "x64": bool(jax.config.jax_enable_x64),  # type: ignore[attr-defined]
    }
