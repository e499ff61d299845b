"""Kernels that several layers share: each place has an update of its own, merged or not."""

import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from increlora_jax.nn.any_model import attach as attach_any
from increlora_jax.nn.any_model import split as split_any
from increlora_jax.nn.attach import adapters_of, detach, merge, parameter_selector, unmerge
from increlora_jax.nn.kernels import KernelAxes
from increlora_jax.nn.linen import LinenModel
from increlora_jax.nn.skeleton import split

X = jnp.asarray(np.random.default_rng(3).normal(size=(5, 4)), jnp.float32)


class Tied(nnx.Module):
    """An encoder, a decoder and a table of words over one kernel."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.enc, self.dec = nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)
        self.words = nnx.Embed(4, 4, rngs=rngs)
        self.enc.kernel = self.dec.kernel = self.words.embedding

    def __call__(self, x):
        return self.dec(jnp.tanh(self.enc(x))) @ self.words.embedding[...]


class Own(nnx.Module):
    """A module with a parameter of its own name."""

    def __init__(self, table):
        self.table = table

    def __call__(self, x):
        return x @ self.table[...]


class TiedOwn(nnx.Module):
    """Two of those over one parameter, and a third that nobody adapts."""

    def __init__(self):
        table = nnx.Param(jax.random.normal(jax.random.key(0), (4, 4)))
        self.one, self.two, self.rest = Own(table), Own(table), Own(table)

    def __call__(self, x):
        return self.rest(jnp.tanh(self.two(jnp.tanh(self.one(x)))))


def stir(model):
    """Give every adapter another update that shows."""
    draw = np.random.default_rng(2)
    for own in adapters_of(model).values():
        own.active[...] = jnp.ones_like(own.active[...])
        for value in (own.A, own.lam, own.B):
            value[...] = jnp.asarray(draw.normal(size=value.shape), value.dtype)
    return model


@pytest.fixture(params=["layers", "parameters"])
def tied(request, attach_all):
    """A model with tied kernels, two of whose places are adapted, and the paths of its kernels."""
    settings = {"max_rank": 2}
    if request.param == "layers":
        model = attach_all(Tied(), targets=["enc", "dec"], **settings)
        return stir(model), ["dec.kernel", "enc.kernel", "words.embedding"]
    settings["parameters"] = {r"(one|two)\.table": KernelAxes()}
    model = attach_all(TiedOwn(), targets=r"(one|two)\.table", **settings)
    return stir(model), ["one.table", "rest.table", "two.table"]


def kernels_of(model, paths):
    variables = {}
    for path in paths:
        module, name = path.split(".")
        variables[path] = vars(getattr(model, module))[name]
    return variables


def test_merging_unties_says_so_and_unmerging_ties_again(tied):
    model, paths = tied
    before, kernel = model(X), kernels_of(model, paths)[paths[0]].get_value()
    with pytest.warns(UserWarning, match=" and ".join(paths) + " were one parameter"):
        merge(model)
    np.testing.assert_allclose(model(X), before, rtol=1e-5, atol=1e-5)
    merged = kernels_of(model, paths)
    assert len(set(map(id, merged.values()))) == 3
    assert sum((v.get_value() == kernel).all() for v in merged.values()) == 1  # not adapted
    unmerge(model)
    np.testing.assert_array_equal(model(X), before)
    assert len(set(map(id, kernels_of(model, paths).values()))) == 1


@pytest.mark.filterwarnings("ignore:merge")
def test_detaching_a_merged_model_keeps_it_untied(tied):
    model, paths = tied
    before = model(X)
    detach(merge(model))
    np.testing.assert_allclose(model(X), before, rtol=1e-5, atol=1e-5)
    assert len(nnx.to_flat_state(nnx.state(model, nnx.Param))) == 5 if "enc" in paths[1] else 3
    assert all(type(v) is nnx.Param for v in kernels_of(model, paths).values())


@pytest.mark.filterwarnings("ignore:merge")
def test_a_merge_that_is_compiled_unties_too(tied):
    model, paths = tied
    before = model(X)
    nnx.jit(merge)(model)
    np.testing.assert_allclose(model(X), before, rtol=1e-5, atol=1e-5)
    unmerge(model)
    np.testing.assert_array_equal(model(X), before)
    assert len(set(map(id, kernels_of(model, paths).values()))) == 1


@pytest.mark.filterwarnings("ignore:merge")
def test_parts_of_a_tied_model_merge_to_what_they_compute(tied):
    model, _ = tied
    skeleton, parts = split(model, lambda path: False)
    whole = skeleton.assemble(parts)
    np.testing.assert_array_equal(whole(X), model(X))
    np.testing.assert_allclose(skeleton.merge(parts)(X), model(X), rtol=1e-5, atol=1e-5)


def test_a_merged_kernel_keeps_its_type_and_metadata(attach_all):
    class Weight(nnx.Param):
        pass

    model = nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(0)))
    model.layers[0].kernel = Weight(model.layers[0].kernel[...], label=(None, "x"))
    with warnings.catch_warnings(action="error"):  # nothing is shared
        merged = detach(merge(stir(attach_all(model, max_rank=2)))).layers[0].kernel
    assert type(merged) is Weight
    assert merged.get_metadata("label") == (None, "x")


@pytest.mark.parametrize("module", ["enc", "dec", "words"])
def test_a_shared_parameter_is_trained_by_any_of_its_names(module):
    model = Tied()
    with pytest.warns(UserWarning, match="is one parameter with .*it changes there as well"):
        is_trained = parameter_selector(model, [module])
    _, parts = split(model, is_trained)
    bias = [f"{module}.bias"] if module != "words" else []
    assert sorted(parts.head) == sorted([*bias, "dec.kernel"])  # the path that Flax splits it by


def test_all_names_of_a_shared_parameter_need_no_warning():
    with warnings.catch_warnings(action="error"):
        is_trained = parameter_selector(Tied(), ["enc", "dec", "words"])
        parameter_selector(nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(0))), ["0"])
    assert is_trained("dec.kernel")


def test_a_module_under_two_names_is_found_by_both(attach_all):
    class Shared(nnx.Module):
        def __init__(self):
            self.first = self.second = nnx.Linear(4, 4, rngs=nnx.Rngs(0))

    for name in ("first", "second"):
        with warnings.catch_warnings(action="error"):
            is_trained = parameter_selector(Shared(), [name])
        assert is_trained("first.kernel")
    with warnings.catch_warnings(action="error"):
        merge(attach_all(Shared(), max_rank=2))  # one layer with one adapter: nothing is untied


def as_tree():
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4)), jnp.float32)
    return {"enc": {"kernel": kernel}, "dec": {"kernel": kernel}, "words": kernel}


class Two(nn.Module):
    """An encoder and a decoder, and one module that is called twice."""

    def setup(self):
        self.enc, self.dec = nn.Dense(4, use_bias=False), nn.Dense(4, use_bias=False)
        self.twice = nn.Dense(4)

    def __call__(self, x):
        return self.twice(self.dec(jnp.tanh(self.enc(self.twice(x)))))


def as_linen():
    variables = Two().init(jax.random.key(0), X)
    variables["params"]["dec"]["kernel"] = variables["params"]["enc"]["kernel"]
    return LinenModel(Two(), variables, X)


def call_tree(params, x):
    return jnp.tanh(x @ params["enc"]["kernel"]) @ params["dec"]["kernel"] @ params["words"]


COPIES = {
    "tree": (as_tree, call_tree, call_tree, "dec.kernel and enc.kernel and words are one array"),
    "linen": (as_linen, lambda m, x: m(x), Two().apply, "dec.kernel and enc.kernel are one array"),
}


@pytest.mark.parametrize("way", COPIES)
def test_an_array_that_stands_twice_is_two_parameters_and_it_is_said(way, scaling):
    make, call, call_merged, message = COPIES[way]
    adapted = attach_any(make(), "all-linear", scaling=scaling, rngs=nnx.Rngs(1), max_rank=2)
    with pytest.warns(UserWarning, match=message):
        skeleton, parts = split_any(adapted, lambda path: False)
    draw = np.random.default_rng(2)
    adapters = jax.tree.map(
        lambda value: jnp.asarray(draw.normal(size=value.shape), value.dtype), parts.adapters
    )
    parts = parts._replace(adapters=adapters)
    merged = skeleton.merge(parts)
    expected = call(skeleton.assemble(parts), X)
    np.testing.assert_allclose(call_merged(merged, X), expected, rtol=1e-4, atol=1e-4)
    params = merged["params"] if way == "linen" else merged
    assert np.abs(params["enc"]["kernel"] - params["dec"]["kernel"]).max() > 0.01


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_that_is_trained_in_full_is_said_and_one_that_is_not_touched_is_not(way):
    make, _, _, message = COPIES[way]
    with pytest.warns(UserWarning, match=message):
        _, parts = split_any(make(), lambda path: path.startswith("dec."))
    assert list(parts.head) == ["dec.kernel"]
    with warnings.catch_warnings(action="error"):
        split_any(make(), lambda path: False)
