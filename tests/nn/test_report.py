import pytest
from flax import nnx

import increlora_jax as il
from increlora_jax.nn.report import report
from increlora_jax.nn.skeleton import split


class Two(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.a = nnx.Linear(10, 7, rngs=rngs)
        self.b = nnx.LinearGeneral(7, (2, 3), rngs=rngs)
        self.head = nnx.Linear(6, 2, rngs=rngs)


@pytest.fixture
def counted(attach_all):
    model = attach_all(Two(), targets=["a", "b"], max_rank={"a": 5, "b": 4}, initial_rank=2)
    model.b.adapter.active[...] = model.b.adapter.active[...].at[2].set(True)
    model.a.adapter.reserve[...] = model.a.adapter.reserve[...].at[3].set(True)
    return report(split(model, lambda path: path.startswith("head."))[1])


def test_counts_by_hand(counted):
    assert counted.ranks == {"a": 2, "b": 3}  # the reserve does not count
    assert counted.total_rank == 5
    assert counted.active == 2 * (10 + 1 + 7) + 3 * (7 + 1 + 6)
    assert counted.buffer == 5 * (10 + 1 + 7) + 4 * (7 + 1 + 6)
    assert counted.head == 6 * 2 + 2
    assert counted.base == (10 * 7 + 7) + (7 * 6 + 6)


def test_description_gives_all_counts_and_the_share_that_learns(counted):
    learning, everything = 78 + 14, 78 + 14 + 125
    assert counted.describe() == (
        "trainable parameters: 78 in 5 active slots (146 in buffers) + 14 in full, over a frozen "
        f"base of 125 ({learning / everything:.2%})"
    )


@pytest.mark.parametrize("make", [il.lora, il.dora])
def test_a_lambda_that_never_learns_is_no_parameter(make):
    method = make(Two(), targets=["a"], growth=il.GrowthConfig(target_rank=3))
    _, parts = split(method.attach(Two(), nnx.Rngs(0)), method.is_trained)
    counts = report(parts)
    assert counts.active == counts.buffer == 3 * (10 + 7)
    assert counts.added == (7 if make is il.dora else 0)


def test_bottlenecks_are_added_parameters_beside_the_head():
    config = il.BottleneckConfig(adapter_size=4)
    method = il.pfeiffer(Two(), targets=["a"], config=config, is_trained=lambda p: "head." in p)
    _, parts = split(method.attach(Two(), nnx.Rngs(0)), method.is_trained)
    counts = report(parts)
    assert counts.added == 2 * 7 * 4 + 7 + 4
    assert counts.head == counts.added + 6 * 2 + 2


def test_a_model_without_adapters_is_all_base():
    counts = report(split(Two(), lambda path: False)[1])
    assert (counts.active, counts.buffer, counts.head, counts.total_rank) == (0, 0, 0, 0)
    assert counts.base == 125 + 14
