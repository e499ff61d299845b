import jax
import jax.numpy as jnp
import numpy as np
import pytest

from increlora_jax.core.optimizer import Trainable
from increlora_jax.core.stacking import Groups, by_name, flatten, is_stacked, unflatten


@pytest.fixture
def adapters(make_adapter):
    """Two of one shape, one of another, one stack; the order of names is not that of shapes."""
    shapes = {"a": (3, 2, 5), "b": (5, 2, 3), "c": (3, 2, 5)}
    alone = {name: make_adapter(*shape) for name, shape in shapes.items()}
    return alone | {"d": make_adapter(3, 2, 5, stack=(2,))}


def test_modules_of_one_shape_are_stacked(adapters):
    groups = Groups(adapters)
    assert groups.keys == (("a", "c"), ("b",), ("d",))
    stacked = groups.stack(adapters)
    assert {key: own.A.shape for key, own in stacked.items()} == {
        ("a", "c"): (2, 3, 2), ("b",): (1, 5, 2), ("d",): (1, 2, 3, 2),
    }  # fmt: skip
    np.testing.assert_array_equal(stacked["a", "c"].B[1], adapters["c"].B)


def test_modules_of_one_shape_and_two_dtypes_stay_apart(adapters):
    adapters["c"] = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), adapters["c"])
    assert Groups(adapters).keys == (("a",), ("b",), ("c",), ("d",))


def test_what_is_not_by_module_stays_as_it_is(adapters):
    key = jax.random.key(1)
    state = Trainable(adapters, {"a": jnp.ones(3)}), {"b": jnp.zeros(2)}, None, key
    groups = Groups(adapters)
    stacked = groups.stack(state)
    assert stacked[0].adapter.keys() == set(groups.keys)
    assert stacked[0].head.keys() == {"a"}
    assert stacked[1].keys() == {"b"}
    assert stacked[3] is key
    single = groups.unstack(stacked)
    assert jax.tree.structure(single) == jax.tree.structure(state)
    for got, expected in zip(jax.tree.leaves(single[:3]), jax.tree.leaves(state[:3]), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_without_modules_there_are_no_groups():
    assert Groups({}).stack(({}, {"a": 1})) == ({}, {"a": 1})


def test_flat_values_are_in_the_order_of_names(adapters):
    scores = {"a": 1.0, "b": 2.0, "c": 3.0, "d": [4.0, 5.0]}
    stacked = Groups(adapters).stack({name: jnp.asarray(score) for name, score in scores.items()})
    assert flatten(stacked, ("a", "b", "c", "d")).tolist() == [1, 2, 3, 4, 5]
    flat = flatten(stacked, ("d", "c", "a", "b"))
    assert flat.tolist() == [4, 5, 3, 1, 2]
    back = unflatten(flat, stacked, ("d", "c", "a", "b"))
    jax.tree.map(np.testing.assert_array_equal, back, stacked)


def test_kinds_keep_modules_of_one_shape_apart(adapters):
    groups = Groups(adapters, {"a": 1, "b": 1, "c": 2, "d": 1})
    assert groups.keys == (("a",), ("b",), ("c",), ("d",))


def test_names_suffice_to_take_stacks_apart(adapters):
    stacked = Groups(adapters).stack(adapters)
    assert (is_stacked(stacked), is_stacked(adapters)) == (True, False)
    for either in (stacked, adapters):
        jax.tree.map(np.testing.assert_array_equal, by_name(either), adapters)


def test_gradients_of_stacks_arrive_stacked_by_one_operation_a_stack(adapters):
    groups = Groups(adapters)

    def loss(modules):
        return sum(jnp.sum(jnp.sin(own.A)) for own in by_name(modules).values())

    stacked = groups.stack(adapters)
    got, expected = jax.grad(loss)(stacked), groups.stack(jax.grad(loss)(adapters))
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    program = str(jax.make_jaxpr(jax.grad(loss))(stacked))
    assert program.count("concatenate") == 1  # of the group of two
    assert "add_any" not in program


def test_stacking_away_leaves_nothing_twice(adapters):
    groups, whole = Groups(adapters), dict(adapters)
    stacked = groups.stack_away(adapters)
    assert adapters == {}
    jax.tree.map(np.testing.assert_array_equal, stacked, groups.stack(whole))
