import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from increlora_jax.errors import InputError
from increlora_jax.nn.any_model import attach, plan_targets
from increlora_jax.nn.attach import (
    adapted_layers,
    detach,
    find_targets,
    merge,
    parameter_selector,
    unmerge,
)
from increlora_jax.nn.targets import Selection, path_matches

ATTENTION = ["attention.key", "attention.out", "attention.query", "attention.value"]
BLOCKS = [f"blocks.{i}" for i in range(11)]


def paths_of(model):
    return [".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))]


@pytest.mark.parametrize(
    ("targets", "exclude", "expected"),
    [
        ("all-linear", (), [*ATTENTION, *BLOCKS, "head", "mix"]),
        ("all-linear", ["head", "mix"], [*ATTENTION, *BLOCKS]),
        ("all-linear", r"blocks\.\d+|head|mix", ATTENTION),
        (r"attention\.(query|value)", (), ["attention.query", "attention.value"]),
        ("mix", (), ["mix"]),
        (["value", "query"], (), ["attention.query", "attention.value"]),  # in module order
        (["attention.out", "10"], (), ["attention.out", "blocks.10"]),
        (["1"], (), ["blocks.1"]),  # not blocks.11, had it one, and not blocks.10
        ([*BLOCKS], [f"blocks.{i}" for i in range(1, 11)], ["blocks.0"]),
        (r"blocks\.1?[02]", (), ["blocks.0", "blocks.2", "blocks.10"]),  # numbers as numbers
    ],
)
def test_targets_by_regex_list_or_all(make_net, targets, exclude, expected):
    model = make_net(blocks=11)
    assert list(find_targets(model, Selection(targets, exclude))) == expected


@pytest.mark.parametrize(
    ("targets", "exclude", "message"),
    [
        ("quer", (), r"target_modules: 'quer' matches no Linear.*which has 9: attention.key, .*…"),
        ("q.ery", (), "'q.ery' matches no"),  # a regex is for the whole path
        (["query", "norm"], (), "'norm' matches no Linear"),  # a layer of another kind
        (["uery"], (), "'uery' matches no"),  # not in the middle of a name
        ("all-linear", ["nothing"], "exclude_modules: 'nothing' matches no"),
        ("(", (), r"target_modules: '\(' is not a regular expression"),
        (["head"], ["head"], "leaves none of the targets"),
    ],
)
def test_targets_that_match_nothing_are_named(make_net, targets, exclude, message):
    with pytest.raises(InputError, match=message):
        find_targets(make_net(), Selection(targets, exclude))


@pytest.mark.parametrize(
    ("path", "patterns", "expected"),
    [
        ("a.b.c", r"a\..*", True),
        ("a.b.c", "b", False),
        ("a.b.c", ["c"], True),
        ("a.b.c", ["b.c"], True),
        ("a.b.c", ["a.b.c"], True),
        ("a.b.c", ["a.b"], False),
        ("a.bc", ["c"], False),
        ("a.bc", [".c"], False),  # names, not expressions
    ],
)
def test_a_regex_is_for_the_path_and_a_name_for_its_end(path, patterns, expected):
    assert path_matches(path, patterns) is expected


def test_sizes_can_be_asked_of_an_abstract_model(make_net):
    sizes = plan_targets(nnx.eval_shape(make_net), ["query", "out", "mix", "head"]).sizes
    assert sizes == {
        "attention.out": (8, 8), "attention.query": (8, 8), "head": (6, 3), "mix": (8, 6),
    }  # fmt: skip


def test_attach_keeps_names_weights_and_types(make_net, attach_all, all_targets):
    plain, model = make_net(), make_net()
    assert attach_all(model) is model
    own = [path for path in paths_of(model) if ".adapter." not in path]
    assert own == paths_of(plain)
    for path, value in nnx.to_flat_state(nnx.state(plain, nnx.Param)):
        kept = dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))[path]
        np.testing.assert_array_equal(kept.get_value(), value.get_value())
    assert list(adapted_layers(model)) == all_targets
    assert isinstance(model.attention.query, nnx.LinearGeneral)
    assert isinstance(model.blocks, nnx.List)
    assert isinstance(model.blocks[2], nnx.Linear)
    assert isinstance(model.mix, nnx.Einsum)


def test_a_model_with_new_adapters_computes_what_it_did(make_net, attach_all, ids):
    np.testing.assert_array_equal(attach_all(make_net())(ids), make_net()(ids))


def test_layers_not_targeted_are_left_alone(make_net, attach_all):
    model = attach_all(make_net(), targets=["query"])
    assert list(adapted_layers(model)) == ["attention.query"]
    assert type(model.attention.value) is nnx.LinearGeneral
    assert type(model.head) is nnx.Linear


def test_widths_by_path_stay_within_each_matrix(make_net, attach_all):
    widths = {"attention.query": 5, "head": 7, "blocks.0": 2}
    model = attach_all(make_net(), targets=list(widths), max_rank=widths, initial_rank=2)
    found = {path: layer.adapter.lam.shape for path, layer in adapted_layers(model).items()}
    assert found == {"attention.query": (5,), "head": (3,), "blocks.0": (2,)}
    for layer in adapted_layers(model).values():
        assert layer.adapter.slots.rank == 2


def test_no_two_adapters_start_alike(make_net, attach_all):
    layers = adapted_layers(attach_all(make_net(), targets=["query", "key", "blocks.0"]))
    first = [float(layer.adapter.A[0, 0]) for layer in layers.values()]
    assert len(set(first)) == 3


def test_a_rank_over_the_matrix_names_the_layer_and_changes_nothing(make_net, attach_all):
    model = make_net()
    with pytest.raises(InputError, match="initial rank 4 of head exceeds its 6 × 3 kernel"):
        attach_all(model, initial_rank=4)
    assert not adapted_layers(model)


def test_a_rank_over_the_slots_is_refused(make_net, attach_all):
    with pytest.raises(InputError, match="or its 1 slots"):
        attach_all(make_net(), targets=["query"], max_rank=1, initial_rank=2)


def test_attaching_twice_is_refused(make_net, attach_all):
    model = attach_all(make_net(), targets=["query"])
    with pytest.raises(InputError, match=r"has adapters already. Detach them first"):
        attach_all(model, targets=["key"])


def test_detach_puts_plain_layers_back(make_net, attach_all, stir, ids):
    model = stir(attach_all(make_net()))
    assert detach(model) is model
    assert not adapted_layers(model)
    assert type(model.head) is nnx.Linear
    assert type(model.attention.out) is nnx.LinearGeneral
    assert type(model.mix) is nnx.Einsum
    assert nnx.graphdef(model) == nnx.graphdef(make_net())
    np.testing.assert_array_equal(model(ids), make_net()(ids))


def test_merge_unmerge_and_detach_in_turn(float64, make_net, attach_all, stir, ids):
    model = make_net(param_dtype=jnp.float64)
    before = model(ids)
    stir(attach_all(model, dtype=jnp.float64))
    adapted = model(ids)
    assert np.abs(adapted - before).max() > 0.1
    np.testing.assert_allclose(merge(model)(ids), adapted, rtol=1e-10, atol=1e-10)
    np.testing.assert_array_equal(unmerge(model)(ids), adapted)
    merged = detach(merge(model))
    assert not adapted_layers(merged)
    np.testing.assert_allclose(merged(ids), adapted, rtol=1e-10, atol=1e-10)


def test_adapters_can_be_attached_anew_after_detaching(make_net, attach_all):
    attach_all(detach(attach_all(make_net())))


class Shared(nnx.Module):
    """One layer at two paths, called twice."""

    def __init__(self):
        self.second = self.first = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
        self.between = nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(1)), jnp.tanh)

    def __call__(self, x):
        return self.second(self.between(self.first(x)))


def test_a_shared_layer_stays_shared_and_has_one_adapter(attach_all, stir):
    model = stir(attach_all(Shared(), max_rank=4))
    assert model.first is model.second
    assert list(adapted_layers(model)) == ["between.layers.0", "first"]
    x = jnp.ones((2, 4))
    adapted = model(x)
    detach(merge(model))
    assert model.first is model.second
    np.testing.assert_allclose(model(x), adapted, rtol=1e-5, atol=1e-5)  # float32


def test_layers_in_containers_are_reached(attach_all):
    class Holder(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.by_name = nnx.Dict(one=nnx.Linear(4, 4, rngs=rngs))
            self.nested = nnx.List([nnx.List([nnx.Linear(4, 4, rngs=rngs)])])
            self.chain = nnx.Sequential(jnp.tanh, nnx.Linear(4, 4, rngs=rngs))

        def __call__(self, x):
            return self.chain(self.nested[0][0](self.by_name.one(x)))

    model = attach_all(Holder(), max_rank=4)
    assert list(adapted_layers(model)) == ["by_name.one", "chain.layers.1", "nested.0.0"]
    np.testing.assert_array_equal(model(jnp.ones((2, 4))), Holder()(jnp.ones((2, 4))))


def test_an_adapted_model_trains_under_plain_nnx(make_net, attach_all, ids):
    model = attach_all(make_net())
    gradient = nnx.grad(lambda m: m(ids).sum(), argnums=nnx.DiffState(0, nnx.LoRAParam))(model)
    leaves = jax.tree.leaves(gradient)
    assert len(leaves) == 3 * 9
    assert any(leaf.any() for leaf in leaves)


def test_modules_trained_in_full_are_said_as_targets(make_net):
    is_trained = parameter_selector(make_net(), ["head", "norm"])
    chosen = [path for path in paths_of(make_net()) if is_trained(path)]
    assert chosen == ["head.bias", "head.kernel", "norm.bias", "norm.scale"]


def test_a_whole_subtree_can_be_trained_in_full(make_net):
    is_trained = parameter_selector(make_net(), "attention")
    chosen = {path.split(".")[1] for path in paths_of(make_net()) if is_trained(path)}
    assert chosen == {"query", "key", "value", "out"}


def test_a_name_is_not_a_prefix_of_another_name(make_net):
    model = make_net(blocks=11)
    is_trained = parameter_selector(model, ["blocks.1"])
    assert [p for p in paths_of(model) if is_trained(p)] == ["blocks.1.bias", "blocks.1.kernel"]


def test_modules_to_train_that_are_not_there_are_named(make_net):
    with pytest.raises(InputError, match="modules_to_save: 'pooler' matches no module"):
        parameter_selector(make_net(), ["pooler"])


@pytest.mark.parametrize("width", [1, 8])
def test_attach_needs_no_more_than_a_model_and_targets(make_net, scaling, width):
    model = attach(make_net(), ["query"], max_rank=width, scaling=scaling, rngs=nnx.Rngs(0))
    assert model.attention.query.adapter.lam.shape == (width,)
