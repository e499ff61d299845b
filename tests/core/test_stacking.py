import jax
import jax.numpy as jnp
import numpy as np
import pytest

from increlora_jax.core.optimizer import Trainable
from increlora_jax.core.stacking import Groups, by_name, flatten, unflatten


@pytest.fixture
def adapters(make_adapter):
    """Two of one shape, one of another, one stack; the order of names is not that of shapes."""
    shapes = {"a": (3, 2, 5), "b": (5, 2, 3), "c": (3, 2, 5)}
    alone = {name: make_adapter(*shape) for name, shape in shapes.items()}
    return alone | {"d": make_adapter(3, 2, 5, stack=(2,))}


def test_modules_of_one_shape_are_stacked(adapters):
    groups = Groups(adapters)
    assert groups.keys == (("a", "c"), ("b",), ("d",))
    packed = groups.pack(adapters)
    assert {key: own.A.shape for key, own in packed.items()} == {
        ("a", "c"): (2, 3, 2), ("b",): (1, 5, 2), ("d",): (1, 2, 3, 2),
    }  # fmt: skip
    np.testing.assert_array_equal(packed["a", "c"].B[1], adapters["c"].B)


def test_modules_of_one_shape_and_two_dtypes_stay_apart(adapters):
    adapters["c"] = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), adapters["c"])
    assert Groups(adapters).keys == (("a",), ("b",), ("c",), ("d",))


def test_what_is_not_by_module_stays_as_it_is(adapters):
    key = jax.random.key(1)
    state = Trainable(adapters, {"a": jnp.ones(3)}), {"b": jnp.zeros(2)}, None, key
    groups = Groups(adapters)
    packed = groups.pack(state)
    assert packed[0].adapter.keys() == set(groups.keys)
    assert packed[0].head.keys() == {"a"}
    assert packed[1].keys() == {"b"}
    assert packed[3] is key
    unpacked = groups.unpack(packed)
    assert jax.tree.structure(unpacked) == jax.tree.structure(state)
    for got, expected in zip(
        jax.tree.leaves(unpacked[:3]), jax.tree.leaves(state[:3]), strict=True
    ):
        np.testing.assert_array_equal(got, expected)


def test_without_modules_there_are_no_groups():
    assert Groups({}).pack(({}, {"a": 1})) == ({}, {"a": 1})


def test_flat_values_are_in_the_order_of_names(adapters):
    scores = {"a": 1.0, "b": 2.0, "c": 3.0, "d": [4.0, 5.0]}
    packed = Groups(adapters).pack({name: jnp.asarray(score) for name, score in scores.items()})
    assert flatten(packed, ("a", "b", "c", "d")).tolist() == [1, 2, 3, 4, 5]
    flat = flatten(packed, ("d", "c", "a", "b"))
    assert flat.tolist() == [4, 5, 3, 1, 2]
    back = unflatten(flat, packed, ("d", "c", "a", "b"))
    jax.tree.map(np.testing.assert_array_equal, back, packed)


def test_kinds_keep_modules_of_one_shape_apart(adapters):
    groups = Groups(adapters, {"a": 1, "b": 1, "c": 2, "d": 1})
    assert groups.keys == (("a",), ("b",), ("c",), ("d",))


def test_names_suffice_to_take_stacks_apart(adapters):
    back = by_name(Groups(adapters).pack(adapters))
    jax.tree.map(np.testing.assert_array_equal, back, adapters)


def test_packing_away_leaves_nothing_twice(adapters):
    groups, whole = Groups(adapters), dict(adapters)
    packed = groups.pack_away(adapters)
    assert adapters == {}
    jax.tree.map(np.testing.assert_array_equal, packed, groups.pack(whole))
