import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from increlora_jax.config import AdapterConfig, GrowthConfig
from increlora_jax.errors import InputError
from increlora_jax.methods.increlora import increlora
from increlora_jax.methods.lora import lora
from increlora_jax.nn.attach import adapters_of
from tests.tiny import MLP, MODULES, batch_of, run, start, trains_head

RANK, ALPHA = 3, 12.0


def begin(rank=RANK, **training):
    method = lora(
        MLP(),
        targets=r"layers\.\d",
        adapter=AdapterConfig(lora_alpha=ALPHA),
        growth=GrowthConfig(target_rank=rank),
        is_trained=trains_head,
    )
    return start(method, steps=10, **training)


def test_it_starts_equal_to_the_base():
    begun = begin()
    x = jnp.asarray(batch_of()["x"])
    got = begun.trainer.predict(begun.state, begun.parts.base, lambda model: model(x))
    np.testing.assert_array_equal(got, MLP()(x))


def test_matrices_start_as_the_paper_has_them():
    parts = begin().parts
    for name, inputs in zip(MODULES, [6, 8, 8, 8], strict=True):
        A, lam, B = parts.adapters[name]
        assert A.shape == (inputs, RANK)
        assert 0.5 * inputs**-0.5 < float(jnp.abs(A).max()) <= inputs**-0.5
        assert not B.any()
        assert lam.tolist() == [1.0] * RANK
        assert parts.slots[name].active.all()
    assert not np.allclose(parts.adapters[MODULES[1]].A, parts.adapters[MODULES[2]].A)


def test_only_a_b_and_head_learn():
    begun = begin(warmup_steps=0, weight_decay=0.1)
    state = run(begun, 4)[-1][0]
    for name in MODULES:
        old, new = begun.parts.adapters[name], state.params.adapter[name]
        assert (old.A != new.A).all()
        assert (old.B != new.B).all()
        assert new.lam.tolist() == [1.0] * RANK
        assert state.slots[name].active.all()
    for path, value in begun.parts.head.items():
        assert (value != state.params.head[path]).any()
    assert sorted(begun.parts.head) == ["head.bias", "head.kernel"]


def test_update_is_alpha_over_rank_times_the_product():
    begun = begin(warmup_steps=0)
    state, name = run(begun, 3)[-1][0], MODULES[0]
    x = jax.random.normal(jax.random.key(0), (5, 6))
    got = begun.trainer.predict(state, begun.parts.base, lambda model: model.layers[0](x))
    A, _, B = state.params.adapter[name]
    expected = MLP().layers[0](x) + ALPHA / RANK * (x @ A) @ B
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)  # float32


def test_loss_falls():
    begun = begin(warmup_steps=0)
    losses = [float(info["loss"]) for _, info in run(begun, 10, lambda seed: batch_of())]
    assert losses[-1] < 0.8 * losses[0]


def test_a_fractional_rank_is_refused():
    with pytest.raises(InputError, match=r"--target-rank 2.5 must be whole for --method lora"):
        begin(2.5)


def test_a_rank_over_the_matrix_names_the_layer():
    with pytest.raises(InputError, match=r"layers\.0 exceeds its 6 × 8 kernel"):
        begin(7)


@pytest.mark.parametrize(
    ("scaling", "expected"), [("rank", 12 / 3), ("target", 12 / 3), ("rsqrt", 12 / 3**0.5)]
)
def test_the_scale_follows_the_rule_that_is_asked_for(scaling, expected):
    adapter = AdapterConfig(lora_alpha=ALPHA, scaling=scaling)
    growth = GrowthConfig(target_rank=RANK)
    method = lora(MLP(), targets=r"layers\.\d", adapter=adapter, growth=growth)
    model = method.attach(MLP(), nnx.Rngs(0))
    own = model.layers[0].adapter
    np.testing.assert_allclose(own.update.scale, expected, rtol=1e-5)
    grown = increlora(MLP(), steps=99, targets=r"layers\.\d", adapter=adapter)
    assert (adapters_of(grown.attach(MLP(), nnx.Rngs(0)))["layers.0"].scaling.rule) == scaling
