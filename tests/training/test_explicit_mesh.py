"""Steps on a mesh of others, with explicit axes as `jax.make_mesh` makes them or automatic ones."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import increlora_jax as il

P = PartitionSpec
SHARDINGS = {
    "up.kernel": P(None, "model"),
    "up.bias": P("model"),
    "down.kernel": P("model"),
    "split.kernel": P(None, "model"),
    "split.bias": P("model"),
    "join.kernel": P("model"),
    "single.kernel": P(None, "model"),
    "product.w": P(None, "model"),
    "gate.w": P(None, "model"),
    "a": P(None, "model"),
    "b": P(None, "model"),
}
"""Of the base, by path; all else is whole on every device."""

STEPS, WIDTH = 8, 8
GROWTH = il.GrowthConfig(target_rank=2, top_h=1, init_warmup=1, incre_interval=2)
DOUBLE = {"param_dtype": jnp.float64}


class Linears(nnx.Module):
    """Layers of one shape, sharded by outputs and then by inputs."""

    def __init__(self, rngs):
        self.up = nnx.Linear(WIDTH, WIDTH, rngs=rngs, **DOUBLE)
        self.down = nnx.Linear(WIDTH, WIDTH, rngs=rngs, **DOUBLE)

    def __call__(self, x, rows):
        return self.down(jnp.tanh(self.up(x)), out_sharding=rows)


class Heads(nnx.Module):
    """Layers of attention, sharded by heads."""

    def __init__(self, rngs):
        self.split = nnx.LinearGeneral(WIDTH, (4, 2), rngs=rngs, **DOUBLE)
        self.join = nnx.LinearGeneral((4, 2), WIDTH, axis=(-2, -1), rngs=rngs, **DOUBLE)
        self.single = nnx.Einsum("btd,dhk->bthk", (WIDTH, 4, 2), rngs=rngs, **DOUBLE)

    def __call__(self, x, rows):
        return self.join(jnp.tanh(self.split(x) + self.single(x)), out_sharding=rows)


class Product(nnx.Module):
    def __init__(self, rngs):
        self.w = nnx.Param(rngs.normal((WIDTH, WIDTH), jnp.float64) / 3)

    def __call__(self, x):
        return x @ self.w


class Gate(Product):
    def __call__(self, x):
        return jnp.tanh(x @ self.w) * jnp.exp(-jnp.square(self.w).sum())


class Declared(nnx.Module):
    """Declared parameters: one takes its update as two products, the other as W + ΔW."""

    def __init__(self, rngs):
        self.product, self.gate = Product(rngs), Gate(rngs)

    def __call__(self, x, rows):
        return self.product(x) + self.gate(x)


class Tree:
    """Arrays of a pytree."""

    def __new__(cls, rngs):
        return {name: rngs.normal((WIDTH, WIDTH), jnp.float64) / 3 for name in "ab"}


def call(model, x, rows):
    if isinstance(model, dict):
        return jnp.tanh(x @ model["a"]) @ model["b"]
    return model(x, rows)


KINDS = {kind.__name__: kind for kind in (Linears, Heads, Declared, Tree)}


def train(kind, *, mesh=None, **options):
    """Train, and return what must not depend on the mesh, and what must not happen twice."""
    dropout = 0.1 if kind in ("Linears", "Heads") else 0.0
    model = KINDS[kind](nnx.Rngs(0))
    method = il.increlora(
        model,
        steps=STEPS,
        growth=GROWTH,
        adapter=il.AdapterConfig(lora_dropout=dropout),
        parameters={r".*\.w": il.KernelAxes()} if kind == "Declared" else {},
        dtype=jnp.float64,
    )
    trainer, state, base = il.prepare(
        model, method, total_steps=STEPS, dtype=jnp.float64, **options
    )
    x, rows = jnp.asarray(np.random.default_rng(2).normal(size=(8, 4, WIDTH))), None
    if mesh is not None:
        specs = {name: SHARDINGS.get(name, P()) for name in base}
        base = {n: jax.device_put(a, NamedSharding(mesh, specs[n])) for n, a in base.items()}
        x = jax.device_put(x, NamedSharding(mesh, P("data")))
        state = il.shard(state, like=base)
        rows = P("data", None, None) if AxisType.Explicit in mesh.axis_types else None
    traces, compiled = [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name)
    )

    @jax.jit
    def step(state, base, x):
        traces.append(1)
        loss = lambda model, x: jnp.mean((call(model, x, rows) - 1) ** 2)  # noqa: E731
        _, gradients = trainer.value_and_grad(loss)(state, base, x)
        state, info = trainer.update(state, gradients)
        return state, info | {"A": {n: own.A for n, own in gradients.params.adapter.items()}}

    told, placed = [], jax.tree.map(lambda leaf: leaf.sharding, state)
    for number in range(STEPS):
        if number == 1:
            compiled.clear()
        state, info = step(state, base, x)
        told.append(jax.tree.map(lambda leaf: leaf.tolist(), info))
    later = [name for name in compiled if "backend_compile" in name]
    kept = jax.tree.map(lambda a, s: a.sharding.is_equivalent_to(s, a.ndim), state, placed)
    merged = trainer.merge(state, base)
    told.append(np.asarray(call(merged, x, rows)).tolist())
    return {
        "told": told,
        "again": [len(traces) - 1, len(later)],
        "kept": all(jax.tree.leaves(kept)),
    }


def train_in_host(mesh=None):
    """Train by an optimizer of NNX, and return the losses and the ranks."""
    model, rows = Linears(nnx.Rngs(0)), None
    x = jnp.asarray(np.random.default_rng(2).normal(size=(8, 4, WIDTH)))
    if mesh is not None:
        for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
            spec = SHARDINGS.get(".".join(path), P())
            variable.set_value(jax.device_put(variable.get_value(), NamedSharding(mesh, spec)))
            nnx.update(model, nnx.from_flat_state({path: variable}))
        x, rows = jax.device_put(x, NamedSharding(mesh, P("data"))), P("data", None, None)
    grow = il.growth(
        model,
        optax.adam(0.01),
        steps=STEPS,
        growth=GROWTH,
        is_scored_by_host=True,
        dtype=jnp.float64,
    )
    optimizer = nnx.Optimizer(model, grow, wrt=nnx.LoRAParam)

    @nnx.jit
    def step(model, optimizer, x):
        loss = lambda model, x: jnp.mean((model(x, rows) - 1) ** 2)  # noqa: E731
        value, gradients, scores = il.scored_value_and_grad(loss)(model, x)
        optimizer.update(model, gradients, scores=scores)
        return value

    losses = [float(step(model, optimizer, x)) for _ in range(STEPS)]
    return {"losses": losses, "ranks": il.ranks_of(optimizer)}


def measure_host():
    """Train alone and on a mesh, in a process of four devices."""
    mesh = jax.make_mesh((2, 2), ("data", "model"))
    alone = train_in_host()
    with jax.set_mesh(mesh):
        return {"alone": alone, "mesh": train_in_host(mesh)}


def measure(kind):
    """Train alone and on meshes, in a process of four devices."""
    found = {"alone": train(kind)}
    for name, types in (("explicit", AxisType.Explicit), ("automatic", AxisType.Auto)):
        mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(types, types))
        with jax.set_mesh(mesh):
            found[name] = train(kind, mesh=mesh)
            if kind == "Linears":
                found[f"{name} once"] = train(kind, mesh=mesh, is_called_once=True)
    return found


def run(kind):
    devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_ENABLE_X64": "1"}
    done = subprocess.run([sys.executable, __file__, kind], env=os.environ | devices, check=False,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_growth_in_the_loop_of_a_host_does_not_depend_on_the_mesh():
    found = run("host")
    assert found["mesh"]["ranks"] == found["alone"]["ranks"]
    assert sum(found["alone"]["ranks"].values()) == 4
    np.testing.assert_allclose(found["mesh"]["losses"], found["alone"]["losses"], rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_over_a_mesh_train_as_on_one_device_in_one_program(kind):
    found = run(kind)
    alone = found.pop("alone")["told"]
    assert alone[-2]["total_rank"] == 2 * len(alone[-2]["rank"]) > sum(alone[0]["rank"])
    for own in found.values():
        assert own["again"] == [0, 0]
        assert own["kept"]
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)  # noqa: E731
        jax.tree.map(close, own["told"], alone)


def test_a_state_goes_where_one_array_is():
    params = {n: jnp.ones((WIDTH, WIDTH)) for n in "ab"}
    _, state, _ = il.prepare(params, il.lora(params), total_steps=3)
    mesh = jax.make_mesh((1,), ("rows",))
    there = jax.device_put(jnp.ones(3), NamedSharding(mesh, PartitionSpec()))
    moved = il.shard(state, like={"alone": jnp.ones(2), "there": there})
    for before, leaf in zip(jax.tree.leaves(state), jax.tree.leaves(moved), strict=True):
        assert before.sharding != leaf.sharding
        assert leaf.sharding == NamedSharding(mesh, PartitionSpec(*[None] * leaf.ndim))


if __name__ == "__main__":
    which = sys.argv[1]
    sys.stdout.write(json.dumps(measure_host() if which == "host" else measure(which)))
