"""What `attach` does that is told nothing but the model."""

import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import increlora_jax as il
from increlora_jax.nn.any_model import attach, split
from increlora_jax.nn.initial import DEFAULT_SCALING

MODELS = {
    "nnx": lambda: nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(0))),
    "linen": lambda: il.LinenModel(
        nn.Sequential([nn.Dense(4)]),
        nn.Sequential([nn.Dense(4)]).init(jax.random.key(0), jnp.ones((1, 4))),
        jnp.ones((1, 4)),
    ),
    "tree": lambda: {"w": jnp.ones((4, 4))},
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_all_that_must_be_given(name):
    adapters, again = (
        split(attach(MODELS[name](), **more), lambda path: False)[1].adapters
        for more in ({}, {"targets": "all-linear", "rngs": nnx.Rngs(0), "max_rank": 8})
    )
    assert len(adapters) == 1
    jax.tree.map(np.testing.assert_array_equal, adapters, again)


def test_the_default_scale_is_the_configurations():
    assert il.AdapterConfig().scaling_rule(1.0) == DEFAULT_SCALING


@pytest.mark.parametrize("kind", [str, os.fspath, lambda path: path, lambda path: "~/adapter"])
def test_a_path_is_text_or_like_one(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    _, parts = split(attach({"w": jnp.ones((4, 4))}), lambda path: False)
    il.save_adapter(kind(tmp_path / "adapter"), parts)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert il.load_adapter(kind(tmp_path / "adapter"), parts).adapters.keys() == {"w"}
