"""States of loops of one's own on disk, and training on from a saved adapter."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import increlora_jax as il

STEPS = 24
GROWTH = il.GrowthConfig(target_rank=3, top_h=1, init_warmup=1, incre_interval=3)


def start(steps=STEPS, **given):
    draw = np.random.default_rng(0)
    params = {f"w{i}": jnp.asarray(draw.normal(size=(6, 6)), jnp.float32) for i in range(2)}
    method = il.increlora(params, steps=steps, growth=GROWTH)
    trainer, state, base = il.prepare(params, method, total_steps=steps, **given)
    x = jnp.asarray(draw.normal(size=(32, 6)), jnp.float32)

    def loss(model, x):
        return jnp.mean((jnp.tanh(x @ model["w0"]) @ model["w1"] - x[:, ::-1]) ** 2)

    @jax.jit
    def step(state):
        _, gradients = trainer.value_and_grad(loss)(state, base, x)
        return trainer.update(state, gradients)[0]

    return trainer, state, base, step


def run(step, state, count):
    for _ in range(count):
        state = step(state)
    return state


def numbers(state):
    raw = state._replace(key=jax.random.key_data(state.key))
    return list(map(np.asarray, jax.tree.leaves(raw)))


@pytest.mark.parametrize("make", [str, lambda path: path], ids=["text", "Path"])
@pytest.mark.parametrize("optimizer", [None, optax.lion(1e-3)], ids=["own", "lion"])
def test_a_loop_of_ones_own_resumes_bit_for_bit(tmp_path, make, optimizer):
    _, state, _, step = start(optimizer=optimizer)
    half = run(step, state, STEPS // 2)
    folder = make(tmp_path / "saved")
    il.save_state(folder, run(step, state, 2))
    il.save_state(folder, half)  # replaces the first
    _, fresh, _, again = start(optimizer=optimizer)
    whole, resumed = (
        run(s, a, STEPS // 2) for s, a in ((step, half), (again, il.load_state(folder, fresh)))
    )
    assert all(map(np.array_equal, numbers(whole), numbers(resumed)))
    assert int(resumed.total_rank) == 6


def test_arrays_come_back_with_the_sharding_that_they_had(tmp_path):
    _, state, *_ = start()
    device = jax.devices()[0]
    mesh = jax.sharding.Mesh([device], "x")
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    own = jax.device_put(state, sharding)
    il.save_state(tmp_path / "saved", state)
    read = il.load_state(tmp_path / "saved", own)
    assert {leaf.sharding for leaf in jax.tree.leaves(read.params)} == {sharding}


def test_a_state_of_another_model_is_named(tmp_path):
    _, state, *_ = start()
    il.save_state(tmp_path / "saved", state)
    params = {"w0": jnp.ones((6, 6))}
    _, other, _ = il.prepare(params, il.increlora(params, steps=9), total_steps=9)
    with pytest.raises(il.InputError, match=r"w1\.A is in no such state"):
        il.load_state(tmp_path / "saved", other)
    both = {"w0": jnp.ones((6, 6)), "w1": jnp.ones((6, 7))}
    _, wide, _ = il.prepare(both, il.increlora(both, steps=STEPS, growth=GROWTH), total_steps=STEPS)
    with pytest.raises(il.InputError, match=r"w1.*B is float32 \[6, 6\], the state wants"):
        il.load_state(tmp_path / "saved", wide)


def test_a_saved_adapter_trains_on_with_all_of_its_slots(tmp_path):
    """A slot born at step 16 of the first run learns from step 0 of the next one on."""
    trainer, state, base, step = start()
    grown = run(step, state, STEPS)
    assert max(int(s.matrix_born[s.active].max()) for s in grown.slots.values()) > 5
    il.save_adapter(tmp_path / "adapter", trainer.parts(grown, base))
    trainer, fresh, base, again = start()
    parts = il.load_adapter(tmp_path / "adapter", trainer.parts(fresh, base))
    first = trainer.init(parts, seed=0)
    assert int(first.total_rank) == 6
    after = run(again, first, 2)  # at step 0 the warmup's rate is 0
    for name, slots in first.slots.items():
        active = np.asarray(slots.active)
        before, moved = first.params.adapter[name], after.params.adapter[name]
        assert (np.abs(moved.A - before.A).max(0) > 0)[active].all()
        assert (np.abs(moved.lam - before.lam) > 0)[active].all()
