"""A model with every kind of layer that takes an adapter, and adapters that do something."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from increlora_jax.core.adapter import Scaling
from increlora_jax.nn.any_model import attach
from increlora_jax.nn.attach import adapted_layers

SCALING = Scaling(16.0)


class Net(nnx.Module):
    """Attention, a list, an Einsum and a head; embedding and norm take no adapter."""

    def __init__(self, blocks=3, **kwargs):
        rngs = nnx.Rngs(0)
        self.embedding = nnx.Embed(10, 8, rngs=rngs, **kwargs)
        self.attention = nnx.MultiHeadAttention(2, 8, 8, decode=False, rngs=rngs, **kwargs)
        self.norm = nnx.LayerNorm(8, rngs=rngs, **kwargs)
        self.blocks = nnx.List([nnx.Linear(8, 8, rngs=rngs, **kwargs) for _ in range(blocks)])
        self.mix = nnx.Einsum("bsd,dnh->bsnh", (8, 2, 3), (2, 3), rngs=rngs, **kwargs)
        self.head = nnx.Linear(6, 3, rngs=rngs, **kwargs)

    def __call__(self, ids):
        x = self.embedding(ids)
        x = self.norm(x + self.attention(x))
        for block in self.blocks:
            x = x + jnp.tanh(block(x))
        return self.head(self.mix(x).reshape(*x.shape[:-1], 6))


ATTENTION = [f"attention.{name}" for name in ("key", "out", "query", "value")]
TARGETS = [*ATTENTION, *(f"blocks.{i}" for i in range(3)), "head", "mix"]


@pytest.fixture
def float64():
    """Compute in double precision."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def make_net():
    """Make a new model, always with the same weights."""
    return Net


@pytest.fixture
def all_targets():
    """Every layer of the model that takes an adapter, in module order."""
    return list(TARGETS)


@pytest.fixture
def ids():
    """A batch of two short sequences."""
    return jnp.asarray(np.random.default_rng(0).integers(0, 10, (2, 5)))


@pytest.fixture
def scaling():
    """The rule of s that the adapters of these tests follow."""
    return SCALING


@pytest.fixture
def attach_all():
    """Attach adapters to every layer."""

    def attach_all(model, **settings):
        return attach(
            model, **({"targets": "all-linear", "scaling": SCALING, "rngs": nnx.Rngs(1)} | settings)
        )

    return attach_all


@pytest.fixture
def stir():
    """Give the adapters of a model updates that show: three active slots, λ of all sizes."""

    def stir(model):
        draw = np.random.default_rng(2)
        for layer in adapted_layers(model).values():
            own = layer.adapter
            own.active[...] = jnp.arange(own.active.shape[0]) < 3
            for value in (own.A, own.lam, own.B):
                value[...] = jnp.asarray(draw.normal(size=value.shape), value.dtype)
        return model

    return stir


def assert_twice(none, once, twice):
    """What an update adds to the arrays of a tree is doubled, and is not nothing."""
    added = jax.tree.map(lambda a, b: np.asarray(b - a), none, once)
    doubled = jax.tree.map(lambda a, c: np.asarray(c - a), none, twice)
    assert any(np.abs(value).max() > 1e-3 for value in jax.tree.leaves(added))
    jax.tree.map(
        lambda value, other: np.testing.assert_allclose(other, 2 * value, rtol=1e-4, atol=1e-6),
        added,
        doubled,
    )


def with_alpha(skeleton, parts, alpha):
    """The same parts with the scales of another α, as a trainer gives them."""
    scaling = skeleton.rules.scaling.given({"lora_alpha": alpha})
    return parts._replace(
        scales={
            path: scaling(slots.rank, parts.adapters[path].lam.dtype)
            for path, slots in parts.slots.items()
        }
    )
