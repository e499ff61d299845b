"""Fixtures for every room: shapes checked at run time, and the real data and model."""

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

import tests.typechecker

with install_import_hook(["increlora_jax.core", "increlora_jax.nn"], "tests.typechecker.check"):
    import increlora_jax.core.adapter
    import increlora_jax.core.allocator
    import increlora_jax.core.importance
    import increlora_jax.core.optimizer
    import increlora_jax.core.plan
    import increlora_jax.core.regularizer
    import increlora_jax.core.schedule
    import increlora_jax.nn.attach
    import increlora_jax.nn.layers
    import increlora_jax.nn.parts
    import increlora_jax.nn.report
    import increlora_jax.nn.storage  # noqa: F401  (imported here to be hooked)


def _folder_of(variable: str, what: str) -> Path:
    if variable not in os.environ:
        pytest.skip(f"set {variable} to {what}")
    return Path(os.environ[variable])


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The real data: glue/SST-2, glue/MRPC, …"""
    return _folder_of("INCRELORA_TEST_DATA", "the folder that holds glue/SST-2/train.tsv")


@pytest.fixture(scope="session")
def minilm_dir() -> Path:
    """The real encoder."""
    return _folder_of("INCRELORA_TEST_MODEL", "the folder of all-MiniLM-L6-v2 (model.safetensors)")


@pytest.fixture(scope="session")
def reference_dir(data_dir: Path) -> Path:
    """The reference traces, which lie beside the data."""
    return data_dir.parent / "reference"
