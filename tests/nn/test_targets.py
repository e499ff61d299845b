"""Names of targets in the spelling of other libraries, and the messages about the others."""

import re

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

import increlora_jax as il
from increlora_jax.nn.targets import as_dotted


def adapted(model, targets, **more):
    return sorted(il.split(il.attach(model, targets, **more), lambda path: False)[1].adapters)


@pytest.mark.parametrize(("path", "dotted"), [
    ("attn0/query/w", "attn0.query.w"),
    (".layers[0].weight", "layers.0.weight"),
    ("['mlp/linear']['w']", "mlp.linear.w"),
    ("a.b", "a.b"),
])  # fmt: skip
def test_paths_of_others_are_read_with_dots(path, dotted):
    assert as_dotted(path) == dotted


@pytest.mark.parametrize("targets", [
    "query.w", "attn0/query.w", "attn0.query.w", "attn0/query/w", r".*query\.w", r"attn\d/query/w",
    ["query"], ["query.w"], ["attn0/query"],
])  # fmt: skip
def test_haiku_modules_are_named_as_haiku_does(targets):
    params = {"attn0/query": {"w": jnp.ones((4, 4)), "b": jnp.ones(4)},
              "mlp/linear": {"w": jnp.ones((4, 4))}}  # fmt: skip
    assert list(il.attach(params, targets).adapters) == ["attn0/query.w"]


@pytest.mark.parametrize("targets", [["layers[1]"], ".layers[1].weight", ["layers.1.weight"]])
def test_equinox_paths_are_named_as_equinox_does(targets):
    params = {"layers": [{"weight": jnp.ones((4, 4))} for _ in range(3)]}
    assert list(il.attach(params, targets).adapters) == ["layers.1.weight"]


class Kernel(nnx.Module):
    """A kernel with an equation of its own, as in tunix and gemma."""

    def __init__(self, equation, shape):
        self.einsum_str = equation
        self.w = nnx.Param(jnp.ones(shape))

    def __call__(self, x):
        return jnp.einsum(self.einsum_str, x, self.w)


class Model(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.q = Kernel("BTD,DNH->BTNH", (4, 2, 3))
        self.strange = Kernel("no equation", (3, 16, 32))
        self.conv = nnx.Conv(3, 4, (3,), rngs=rngs)
        self.embed = nnx.Embed(5, 4, rngs=rngs)
        self.out = nnx.Linear(4, 4, rngs=rngs)


def test_axes_are_those_of_the_modules_own_equation():
    model = il.attach(Model(), ["q"], max_rank=2)
    _, parts = il.split(model, lambda path: False)
    assert parts.adapters["q.w"].A.shape == (4, 2)
    assert parts.adapters["q.w"].B.shape == (2, 6)
    assert model.q(jnp.ones((1, 2, 4))).shape == (1, 2, 2, 3)


def test_a_declared_module_answers_to_its_own_name_too():
    declared = {r"strange\.w": il.KernelAxes((0,), (1, 2))}
    for targets in (["strange"], "strange", ["strange.w"], r"strange\.w"):
        assert adapted(Model(), targets, parameters=declared) == ["strange.w"]


@pytest.mark.parametrize(("targets", "message"), [
    (["conv"], r"conv is a Conv, .* conv\.kernel \[3, 3, 4\]\. Declare .*inputs=\(0, 1\), outputs"),
    (["embed"], r"embed is an Embed, which looks rows up .*outputs=\(1,\)\)\}, or exclude embed"),
    (["strange"], r"strange\.w \[3, 16, 32\]\. .*outputs=\(1, 2\)\)\} \(or .* that meet x\)"),
    (["nothing"], r"'nothing' matches no"),
])  # fmt: skip
def test_a_target_that_must_be_declared_says_how(targets, message):
    with pytest.raises(il.InputError, match=message):
        il.attach(Model(), targets)


def test_layers_that_must_be_declared_are_passed_over_by_a_wider_target():
    assert adapted(Model(), "out|conv") == ["out"]


def test_every_linear_layer_is_one_of_flax_or_one_that_multiplies_by_its_equation():
    assert adapted(Model(), "all-linear") == ["out", "q.w"]


def linen_model(module, x):
    return il.LinenModel(module, module.init(jax.random.key(0), x), x)


class DenseAndEmbed(nn.Module):
    @nn.compact
    def __call__(self, i):
        return nn.Dense(4)(nn.Embed(3, 4)(i))


@pytest.mark.parametrize(("make", "exclude", "known", "declarable"), [
    (Model, ["out", "q"], "out, q.w", "strange.w, conv.kernel, embed.embedding"),
    (lambda: linen_model(DenseAndEmbed(), jnp.ones((1, 4), int)), ["Dense_0"],
     "Dense_0", "Embed_0.embedding"),
    (lambda: {"w": jnp.ones((4, 4)), "k": jnp.ones((2, 4, 4))}, ["w"], "w", "k"),
])  # fmt: skip
def test_an_exclusion_of_everything_names_the_choice(make, exclude, known, declarable):
    message = re.escape(
        f"exclude_modules: {exclude} leaves none of the targets 'all-linear'. The model can adapt "
        f"{known}; parameters={{…}} can declare {declarable}. "
    )
    with pytest.raises(il.InputError, match=message):
        il.attach(make(), exclude=exclude)


@pytest.mark.parametrize(("model", "message"), [
    (lambda: nnx.Sequential(nnx.Embed(3, 4, rngs=nnx.Rngs(0))),
     r"no Linear, .* layer\. layers\.0 is an Embed, which looks .*layers\\\.0\\\.embedding"),
    (lambda: linen_model(nn.Sequential([nn.Embed(3, 4)]), jnp.ones((1, 4), int)),
     r"no Dense, .* layer\. layers_0 is an Embed, which looks .*layers_0\\\.embedding"),
])  # fmt: skip
def test_a_model_of_a_lookup_says_so(model, message):
    with pytest.raises(il.InputError, match=message):
        il.attach(model())


@pytest.mark.parametrize("targets", ["all-linear", ["Dense_0"]])
def test_a_bridge_to_linen_asks_for_the_linen_model(targets):
    bridge = nnx.bridge.ToNNX(DenseAndEmbed(), rngs=nnx.Rngs(0))
    bridge.lazy_init(jnp.ones((1, 4), int))
    with pytest.raises(il.InputError, match=r"the model is itself a ToNNX, .*il\.LinenModel\("):
        il.attach(bridge, targets)


def test_a_bare_linen_module_asks_for_its_variables():
    with pytest.raises(il.InputError, match=r"a Linen Dense .* il\.LinenModel\(module, variables"):
        il.attach(nn.Dense(4))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_merged_model_has_the_mode_of_the_hosts(mode):
    model = nnx.Sequential(
        nnx.Linear(4, 4, rngs=nnx.Rngs(0)), nnx.Dropout(0.5), nnx.BatchNorm(4, rngs=nnx.Rngs(0))
    )
    getattr(model, mode)()
    trainer, state, base = il.prepare(model, il.lora(model), total_steps=4)
    merged = trainer.merge(state, base)
    assert (
        merged.layers[1].deterministic == merged.layers[2].use_running_average == (mode == "eval")
    )
