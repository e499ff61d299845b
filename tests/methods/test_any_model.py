"""What a user's own model may hold, and what is said where a method cannot take it."""

import warnings
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import increlora_jax as il

X = jnp.linspace(-1, 1, 24).reshape(3, 8)


def doubled(a, b, dimensions, precision=None, **options):
    return 2 * jax.lax.dot_general(a, b, dimensions, precision=precision)


def scaled(*arrays, dtype=None, **options):
    arrays = arrays[0] if isinstance(arrays[0], tuple) else arrays  # NNX gives a tuple
    return tuple(None if array is None else 2 * array for array in arrays)


def two_linears(**options):
    return nnx.Sequential(
        nnx.Linear(8, 8, rngs=nnx.Rngs(0), **options), nnx.Linear(8, 2, rngs=nnx.Rngs(1))
    )


class TwoDense(nn.Module):
    options: dict

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.Dense(8, **self.options)(x))


def linen(**options):
    module = TwoDense(options)
    return il.LinenModel(module, module.init(jax.random.key(0), X), X)


@pytest.mark.parametrize("make", [two_linears, linen])
@pytest.mark.parametrize("options", [{"dot_general": doubled}, {"promote_dtype": scaled}])
def test_a_layer_with_a_product_of_its_own_is_passed_over_by_name(make, options):
    (name,) = options
    with pytest.warns(UserWarning, match=f"passes over .*a {name} of its own"):
        method = il.lora(make(**options))
    assert method.description.startswith("1 modules")


def test_a_layer_with_batch_axis_does_not_end_all_linear():
    model = nnx.Sequential(
        nnx.LinearGeneral(8, 8, batch_axis={0: 3}, rngs=nnx.Rngs(0)),
        nnx.Linear(8, 2, rngs=nnx.Rngs(1)),
    )
    with pytest.warns(UserWarning, match="passes over layers.0: a LinearGeneral with batch_axis"):
        assert il.lora(model).description.startswith("1 modules")


@pytest.mark.parametrize("make", [two_linears, linen])
def test_a_kernel_that_is_declared_is_adapted_once(make):
    path = "layers.0" if make is two_linears else "Dense_0"
    declared = {rf"{path}\.kernel": il.KernelAxes()}
    method = il.increlora(make(), steps=8, parameters=declared)
    trainer, _, _ = il.prepare(make(), method, total_steps=8)
    assert f"{path}.kernel" in trainer.skeleton.modules
    assert path not in trainer.skeleton.modules
    assert len(trainer.skeleton.modules) == 2


def test_a_linen_module_with_variables_of_its_own_is_passed_over():
    inner = nn.Dense(8, name="inner")
    held = inner.init(jax.random.key(1), X)["params"]

    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(nn.Dense(8, parent=None, name="inner").apply({"params": held}, x))

    module = Outer()
    model = il.LinenModel(module, module.init(jax.random.key(0), X), X)
    assert il.lora(model).description == "1 modules of rank 2"


def narrow_tree():
    return {"a": jnp.ones((8, 8)), "b": jnp.ones((8, 1))}


@pytest.mark.parametrize("make", [two_linears, narrow_tree])
def test_lora_names_the_matrix_that_is_too_narrow_when_it_is_planned(make):
    model = make()
    if not isinstance(model, dict):
        model.layers[1] = nnx.Linear(8, 1, rngs=nnx.Rngs(1))
    with pytest.raises(il.InputError, match=r"target_rank 2 of .* exceeds its 8 × 1 kernel"):
        il.lora(model, steps=9)


class Odd(nnx.Module):
    def __init__(self, value):
        self.layer = nnx.Linear(8, 2, rngs=nnx.Rngs(0))
        self.odd = nnx.Param(value)

    def __call__(self, x):
        return self.layer(x)


@pytest.mark.parametrize("make", [Odd, lambda value: {"odd": value, "w": jnp.ones((8, 2))}])
def test_full_leaves_whole_numbers_alone_and_refuses_complex_ones(make):
    whole = make(jnp.array([1, 0]))
    _, state, base = il.prepare(whole, il.full(whole), total_steps=3)
    assert "odd" in base
    assert "odd" not in state.params.head
    other = make(jnp.array([1j]))
    with pytest.raises(il.InputError, match="odd is complex and cannot be trained in full"):
        il.prepare(other, il.full(other), total_steps=3)


def test_a_method_for_another_number_of_steps_is_refused():
    method = il.increlora(two_linears(), steps=100)
    with pytest.raises(il.InputError, match=r"total_steps=50, but increlora.*100 steps"):
        il.prepare(two_linears(), method, total_steps=50)


@pytest.mark.parametrize("steps", [0, -5, 10.0, "10"])
def test_steps_are_a_whole_number(steps):
    with pytest.raises(il.InputError, match="must be a whole number of at least 1"):
        il.increlora(two_linears(), steps=steps)


def test_steps_may_be_numpys():
    assert il.increlora(two_linears(), steps=np.int64(9)).rank_budget == 4


def test_a_method_for_another_model_is_refused():
    larger = nnx.Sequential(*(nnx.Linear(8, 8, rngs=nnx.Rngs(i)) for i in range(3)))
    with pytest.raises(il.InputError, match=r"layers\.2 is in no plan.*another model"):
        il.prepare(larger, il.increlora(two_linears(), steps=9), total_steps=9)


def make_reader(call):
    """Make an NNX model of two layers that calls them by `call(model, x)`."""

    class Reader(nnx.Module):
        def __init__(self):
            self.first = nnx.Linear(8, 8, rngs=nnx.Rngs(0))
            self.last = nnx.Linear(8, 4, rngs=nnx.Rngs(1))

        def __call__(self, x):
            return call(self, x)

    return Reader()


def train_and_merge(model, x):
    """Train through every round; return the outputs of the trained and of the merged model."""
    growth = il.GrowthConfig(target_rank=2, top_h=1, init_warmup=0, incre_interval=1)
    config = il.TrainingConfig(learning_rate=5e-2, warmup_steps=0)
    method = il.increlora(model, steps=6, growth=growth)
    trainer, state, base = il.prepare(model, method, config, total_steps=6)
    differentiate = trainer.value_and_grad(lambda model: jnp.mean((model(x) - 1) ** 2))

    @jax.jit
    def step(state, base):
        return trainer.update(state, differentiate(state, base)[1])[0]

    for _ in range(6):
        state = step(state, base)
    assert int(state.total_rank) == 4
    return trainer.predict(state, base, lambda model: model(x)), trainer.merge(state, base)(x)


def test_a_model_may_differentiate_its_own_layers():
    def descend(model, x):
        energy = jax.grad(lambda x: jnp.sum(jnp.tanh(model.first(x)) ** 2))
        return model.last(energy(x))

    trained, merged = train_and_merge(make_reader(descend), jnp.ones((16, 8)))
    np.testing.assert_allclose(trained, merged, rtol=1e-5, atol=1e-6)


def test_nobody_is_warned_of_what_recomputed_layers_hold():
    def recompute(model, x):
        return model.last(nnx.jit(nnx.remat(lambda layer, x: layer(x)))(model.first, x))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained, merged = train_and_merge(make_reader(recompute), jnp.ones((16, 8)))
    np.testing.assert_allclose(trained, merged, rtol=1e-5, atol=1e-6)


def test_a_model_that_was_called_before_keeps_what_it_has_sown():
    def sow(model, x):
        model.sow(nnx.Intermediate, "seen", x)
        return model.last(model.first(x))

    model, x = make_reader(sow), jnp.ones((2, 8))
    model(x)
    trained, merged = train_and_merge(model, x)
    np.testing.assert_allclose(trained, merged, rtol=1e-5, atol=1e-6)


def test_a_path_that_reads_like_a_layer_of_a_stack_is_refused():
    with pytest.raises(il.InputError, match=r"a\[0\] ends in \].*Rename it, or exclude it"):
        il.increlora({"a[0]": jnp.ones((8, 8)), "b": jnp.ones((8, 4))}, steps=10)


def test_variables_without_their_collection_are_refused():
    module, x = TwoDense({}), jnp.ones((1, 3))
    params = module.init(jax.random.key(0), x)["params"]
    with pytest.raises(
        il.InputError, match=r"lack a parameter: .*collections 'Dense_0', 'Dense_1'"
    ):
        il.LinenModel(module, params, x)
    with pytest.raises(il.InputError, match=r"no collections: 'bias' is"):
        il.LinenModel(nn.Dense(4), params["Dense_0"], x)


class Doubled(nn.Dense):
    @nn.compact
    def __call__(self, x):
        return 2 * super().__call__(x)


class Only(nn.Module):
    make: Callable[[], nn.Module]

    @nn.compact
    def __call__(self, x):
        return self.make()(x)


class Weight(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x @ self.param("w", nn.initializers.ones, (8, 4))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Dense(4), r"itself a Dense.*nn\.Sequential"),
        (Only(lambda: Doubled(4)), r"can be adapted: Doubled_0 is a Doubled, which"),
        (Only(lambda: nn.WeightNorm(nn.Dense(4))), r"can be adapted: Dense_0 is part of a Weight"),
        (Only(lambda: nn.DenseGeneral(4, batch_dims=0)), r"adapted: .* a DenseGeneral with batch_"),
        (
            Only(Weight),
            r"Declare an array to adapt, .*r'Weight_0\\\.w'.* target Weight_0",
        ),
    ],
)
def test_a_linen_model_without_a_layer_to_adapt_names_those_that_it_has(module, message):
    with pytest.raises(il.InputError, match=message):
        il.attach(il.LinenModel(module, module.init(jax.random.key(0), X), X))
