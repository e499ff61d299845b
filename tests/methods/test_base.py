import jax
import jax.numpy as jnp
import pytest

from increlora_jax.config import AdapterConfig, GrowthConfig
from increlora_jax.core.groups import Groups
from increlora_jax.methods.base import Method, fixed_method
from increlora_jax.methods.full import full
from increlora_jax.methods.head import head
from increlora_jax.methods.increlora import increlora
from increlora_jax.methods.lora import lora
from tests.tiny import MLP, assert_same, start, trains_head

SETTINGS = {
    "targets": r"layers\.\d",
    "adapter": AdapterConfig(),
    "growth": GrowthConfig(target_rank=2, init_warmup=1, incre_interval=1),
    "is_trained": trains_head,
}
METHODS = {
    "increlora": lambda model: increlora(model, steps=9, **SETTINGS),
    "lora": lambda model: lora(model, **SETTINGS),
    "head": lambda model: head(trains_head),
    "full": lambda model: full(),
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_fills_in_the_protocol(name):
    method = METHODS[name](MLP())
    assert isinstance(method, Method)
    assert method.name == name
    assert method.description
    begun = start(method, steps=9)
    own = begun.state.params.adapter
    adapters, slots = Groups(own).pack((own, begun.state.slots))
    updated = method.update(
        jnp.asarray(1), jax.random.key(0), adapters, slots, begun.state.method, None
    )
    assert jax.tree.structure(updated[:3]) == jax.tree.structure(
        (adapters, slots, begun.state.method)
    )
    assert method.regularize(adapters, slots).shape == ()
    assert set(method.probes(own, False)) <= set(own)


@pytest.mark.parametrize("name", ["lora", "head", "full"])
def test_methods_of_fixed_shape_change_nothing_and_ask_for_nothing(name):
    method = METHODS[name](MLP())
    state = start(method, steps=9).state
    params, slots = state.params.adapter, state.slots
    updated = method.update(jnp.asarray(0), jax.random.key(0), params, slots, state.method, {})
    assert_same((updated.adapters, updated.slots, updated.state), (params, slots, state.method))
    assert updated.info == {}
    assert method.rank_budget is None
    assert method.probes(params, True) == {}
    assert method.regularize(params, slots) == 0
    assert not any(method.is_scored(step, False) for step in range(9))


def test_a_fixed_method_keeps_what_it_is_given():
    model = MLP()
    method = fixed_method("x", "y", attach=lambda m, rngs: (m, rngs), is_trained=trains_head)
    assert method.attach(model, 7) == (model, 7)
    assert method.is_trained("head.bias")
    assert not method.is_trained("body.bias")
