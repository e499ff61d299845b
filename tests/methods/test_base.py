import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from increlora_jax.config import AdapterConfig, GrowthConfig
from increlora_jax.core.stacking import Groups
from increlora_jax.errors import InputError
from increlora_jax.methods.adalora import adalora
from increlora_jax.methods.base import Method, Observation, fixed_method
from increlora_jax.methods.bitfit import bitfit
from increlora_jax.methods.bottleneck import houlsby, pfeiffer
from increlora_jax.methods.dora import dora
from increlora_jax.methods.elalora import elalora
from increlora_jax.methods.flexlora import flexlora
from increlora_jax.methods.full import full
from increlora_jax.methods.head import head
from increlora_jax.methods.increlora import increlora
from increlora_jax.methods.lora import lora
from increlora_jax.nn.attach import adapters_of
from tests.tiny import MLP, assert_same, start, trains_head

GROWTH = GrowthConfig(target_rank=2, init_warmup=1, incre_interval=1)
SETTINGS = {
    "targets": r"layers\.\d",
    "adapter": AdapterConfig(),
    "growth": GROWTH,
    "is_trained": trains_head,
}
METHODS = {
    "increlora": lambda model: increlora(model, steps=9, **SETTINGS),
    "lora": lambda model: lora(model, **SETTINGS),
    "head": lambda model: head(model, is_trained=trains_head),
    "adalora": lambda model: adalora(model, steps=9, **SETTINGS),
    "bitfit": lambda model: bitfit(model, is_trained=trains_head),
    "dora": lambda model: dora(model, **SETTINGS),
    "elalora": lambda model: elalora(model, steps=9, **SETTINGS),
    "flexlora": lambda model: flexlora(model, steps=9, **SETTINGS),
    "houlsby": lambda model: houlsby(model, targets=r"layers\.\d", is_trained=trains_head),
    "pfeiffer": lambda model: pfeiffer(model, targets=r"layers\.\d", is_trained=trains_head),
    "full": lambda model: full(),
}


def observe(step, adapters, slots, state, settings):
    before = jnp.asarray(step), jax.random.key(0), adapters, adapters, slots, state
    return Observation(*before, adapters, None, settings)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_fills_in_the_protocol(name):
    method = METHODS[name](MLP())
    assert isinstance(method, Method)
    assert method.name == name
    assert method.description
    begun = start(method, steps=9)
    own = begun.state.params.adapter
    adapters, slots, inner = Groups(own).stack((own, begun.state.slots, begun.state.method))
    updated = method.update(observe(1, adapters, slots, inner, begun.state.settings))
    assert jax.tree.structure(updated[:3]) == jax.tree.structure((adapters, slots, inner))
    assert method.regularize(adapters, slots).shape == ()
    assert set(method.probes(own, False)) <= set(own)


@pytest.mark.parametrize("name", ["lora", "dora", "houlsby", "pfeiffer", "bitfit", "head", "full"])
def test_methods_of_fixed_shape_change_nothing_and_ask_for_nothing(name):
    method = METHODS[name](MLP())
    state = start(method, steps=9).state
    params, slots = state.params.adapter, state.slots
    updated = method.update(observe(0, params, slots, state.method, {}))
    assert_same((updated.adapters, updated.slots, updated.state), (params, slots, state.method))
    assert updated.info == {}
    assert method.rank_budget is None
    assert method.probes(params, True) == {}
    assert method.regularize(params, slots) == 0
    assert not any(method.is_scored(step, False) for step in range(9))


@pytest.mark.parametrize("make", [increlora, lora, head, full])
def test_methods_take_the_same_arguments(make):
    assert (
        make(MLP(), steps=9, exclude=["layers.0"], dtype=jnp.float32, **SETTINGS).name
        == make.__name__
    )


@pytest.mark.parametrize("make", [increlora, lora])
def test_arguments_that_are_not_given_are_the_configurations(make):
    named = AdapterConfig(
        target_modules=["layers.*"], exclude_modules=["layers.0"], modules_to_save=["head"]
    )
    method = make(MLP(), steps=9, adapter=named, growth=GROWTH)
    assert list(adapters_of(method.attach(MLP(), nnx.Rngs(0)))) == [
        "layers.1",
        "layers.2",
        "layers.3",
    ]
    assert method.is_trained("head.kernel")
    assert not method.is_trained("layers.2.kernel")


@pytest.mark.parametrize("make", [increlora, lora])
def test_every_layer_is_the_default_target(make):
    method = make(MLP(), steps=9, growth=GROWTH)
    assert "head" in adapters_of(method.attach(MLP(), nnx.Rngs(0)))
    assert not method.is_trained("head.kernel")


@pytest.mark.parametrize("make", [increlora, lora, head, full])
@pytest.mark.parametrize(
    ("named", "given", "message"),
    [
        ({"target_modules": ["head"]}, {"targets": "all-linear"}, "targets='all-linear' and targ"),
        ({"exclude_modules": ["head"]}, {"exclude": ["layers.1"]}, "exclude=.*differ. Give one"),
        ({"modules_to_save": ["head"]}, {"is_trained": trains_head}, "both say what is trained"),
    ],
)
def test_an_argument_that_contradicts_the_configuration_is_refused(make, named, given, message):
    with pytest.raises(InputError, match=message):
        make(MLP(), steps=9, adapter=AdapterConfig(**named), **given)


def test_a_head_that_nobody_names_is_refused():
    with pytest.raises(InputError, match=r"nothing would be trained\. Give is_trained"):
        head(trains_head)


def test_a_fixed_method_keeps_what_it_is_given():
    model = MLP()
    method = fixed_method("x", "y", attach=lambda m, rngs: (m, rngs), is_trained=trains_head)
    assert method.attach(model, 7) == (model, 7)
    assert method.is_trained("head.bias")
    assert not method.is_trained("body.bias")
