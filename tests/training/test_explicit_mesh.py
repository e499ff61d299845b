"""Steps on a mesh whose axes are explicit, as `jax.make_mesh` makes them."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import increlora_jax as il

STEPS = 12
GROWTH = il.GrowthConfig(target_rank=2, top_h=1, init_warmup=1, incre_interval=3)


def make(kind):
    if kind == "nnx":
        layers = [nnx.Linear(8, 8, rngs=nnx.Rngs(i)) for i in range(2)]
        return nnx.Sequential(layers[0], nnx.tanh, layers[1]), lambda model, x: model(x)
    draw = np.random.default_rng(0)
    params = {n: jnp.asarray(draw.normal(size=(8, 8)), jnp.float32) for n in "ab"}
    return params, lambda model, x: jnp.tanh(x @ model["a"]) @ model["b"]


def train(kind, mesh=None):
    model, call = make(kind)
    method = il.increlora(model, steps=STEPS, growth=GROWTH)
    trainer, state, base = il.prepare(model, method, total_steps=STEPS)
    x = jnp.asarray(np.random.default_rng(2).normal(size=(16, 4, 8)), jnp.float32)
    if mesh is not None:
        base = jax.device_put(base, NamedSharding(mesh, PartitionSpec()))
        x = jax.device_put(x, NamedSharding(mesh, PartitionSpec("rows")))
        state = il.shard(state, like=base)
    traces = []

    @jax.jit
    def step(state, base, x):
        traces.append(1)
        loss = lambda model, x: jnp.mean((call(model, x) - 1) ** 2)  # noqa: E731
        value, gradients = trainer.value_and_grad(loss)(state, base, x)
        return trainer.update(state, gradients)[0], value

    losses = []
    for _ in range(STEPS):
        state, loss = step(state, base, x)
        losses.append(float(loss))
    assert len(traces) == 1
    return losses, int(state.total_rank)


def measure(kind):
    """Train alone and on a mesh, in a process of four devices."""
    alone, rank = train(kind)
    mesh = jax.make_mesh((4,), ("rows",))
    with jax.set_mesh(mesh):
        losses, ranks = train(kind, mesh)
    return {"alone": alone, "mesh": losses, "ranks": [rank, ranks]}


@pytest.mark.parametrize("kind", ["nnx", "tree"])
def test_rows_over_explicit_axes_train_as_on_one_device(kind):
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = subprocess.run([sys.executable, __file__, kind], env=environment, check=True,
                          capture_output=True, text=True)  # fmt: skip
    told = json.loads(done.stdout)
    np.testing.assert_allclose(told["mesh"], told["alone"], rtol=1e-5)
    assert told["ranks"] == [4, 4]


def test_a_state_goes_where_one_array_is():
    model, _ = make("tree")
    _, state, _ = il.prepare(model, il.lora(model), total_steps=3)
    mesh = jax.make_mesh((1,), ("rows",))
    there = jax.device_put(jnp.ones(3), NamedSharding(mesh, PartitionSpec()))
    moved = il.shard(state, like={"alone": jnp.ones(2), "there": there})
    for before, leaf in zip(jax.tree.leaves(state), jax.tree.leaves(moved), strict=True):
        assert before.sharding != leaf.sharding
        assert leaf.sharding == NamedSharding(mesh, PartitionSpec(*[None] * leaf.ndim))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(sys.argv[1])))
