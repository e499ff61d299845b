"""Models drawn from parts: what is adapted is what is merged, what is listed and what grows."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import increlora_jax as il
from increlora_jax.core.importance import IMPORTANCE_FUNCTIONS
from increlora_jax.nn.any_model import plan_targets
from increlora_jax.nn.attach import adapters_of
from tests.model_parts import (
    HOLDERS,
    LINEN_NAMES,
    MATRICES,
    NNX_NAMES,
    ROWS,
    TREE_NAMES,
    WIDTH,
    Chain,
    LinenChain,
    call_tree,
    make_tree,
)

QUICK, THOROUGH = 8, 400
STEPS = 6
DECLARED = {
    r".*\.w": il.KernelAxes((-3,), (-2, -1)),
    r".*heads": il.KernelAxes((0,), (1, 2)),
    r".*layers": il.KernelAxes((1,), (2,)),
}

TRAINED = {
    "nothing": None,
    "biases": lambda path: path.endswith("bias"),
    "first part": lambda path: "0" in path,
}


class Way(NamedTuple):
    """A model by one way in: how to make it, and how to call it whole, plain and merged."""

    name: str
    make: Callable[[], Any]
    call: Callable[[Any, Any], Any]
    plain: Callable[[Any, Any], Any]


def nnx_way(names, holder, dtype):
    def evaluate(model, x):
        model.eval()
        return model(x)

    return Way("nnx", lambda: Chain(names, holder, dtype), lambda model, x: model(x), evaluate)


def linen_way(names, holder, dtype):
    module, x = LinenChain(tuple(names), dtype), jnp.ones((ROWS, WIDTH), dtype)
    variables = module.init(jax.random.key(0), x)

    def plain(model, x):
        held = model.variables if isinstance(model, il.LinenModel) else model
        return module.apply(held, x)

    return Way(
        "linen", lambda: il.LinenModel(module, variables, x), lambda model, x: model(x), plain
    )


def tree_way(names, holder, dtype):
    tree = make_tree(names, dtype)
    return Way("tree", lambda: tree, call_tree, call_tree)


WAYS = {
    "nnx": (nnx_way, NNX_NAMES),
    "linen": (linen_way, LINEN_NAMES),
    "tree": (tree_way, TREE_NAMES),
}


class Drawn(NamedTuple):
    """A model, and what is asked of it."""

    names: list[str]
    holder: str
    dtype: Any
    method: str
    targets: Any
    exclude: Any
    is_declared: bool
    trained: str
    growth: dict[str, Any]
    adapter: dict[str, Any]
    accumulation: int
    is_called_once: bool


def drawn(names):
    """Every model of up to three parts, and every setting."""
    kernels = r".*(w|kernel|heads|layers|\d)"
    targets = ["all-linear", ".*", kernels, ["layers", "w"], ["kernel"], "parts.*", "(", "none"]
    exclude = [*[()] * 6, ["layers"], r".*1.*", ["Dense_0"]]
    growth = st.fixed_dictionaries(
        {
            "initial_rank": st.sampled_from([1, 1, 2]),
            "target_rank": st.sampled_from([1.5, 2, 3]),
            "top_h": st.sampled_from([2, 4]),
            "init_warmup": st.just(0),
            "incre_interval": st.just(1),
            "max_rank": st.sampled_from(["auto", "auto", "exact", "2"]),
            "advance_learn": st.booleans(),
            "restart_warmup": st.booleans(),
            "importance": st.sampled_from(sorted(IMPORTANCE_FUNCTIONS)),
        }
    )
    adapter = st.fixed_dictionaries(
        {
            "lora_dropout": st.sampled_from([0.0, 0.0, 0.2]),
            "scaling": st.sampled_from(["rank", "target", "rsqrt"]),
        }
    )
    return st.builds(
        Drawn,
        st.lists(st.sampled_from(names), min_size=1, max_size=3),
        st.sampled_from(sorted(HOLDERS)),
        st.sampled_from([jnp.float64, jnp.float64, jnp.float64, jnp.bfloat16]),
        st.sampled_from([*["increlora"] * 4, "lora", "lora", "bitfit", "head", "full"]),
        st.sampled_from([*targets[:1] * 12, *targets]),
        st.sampled_from(exclude),
        st.booleans(),
        st.sampled_from(["nothing", "nothing", *TRAINED]),
        growth,
        adapter,
        st.sampled_from([1, 1, 2]),
        st.booleans(),
    )


class Prepared(NamedTuple):
    """A model made ready."""

    way: Way
    asked: dict[str, Any]
    method: Any
    trainer: Any
    state: Any
    base: Any


def prepare(make_way, own: Drawn) -> Prepared:
    """Plan, attach and take apart; an `InputError` may come out."""
    way = make_way(own.names, own.holder, own.dtype)
    asked = {
        "targets": own.targets,
        "exclude": own.exclude,
        "parameters": DECLARED if own.is_declared else {},
    }
    asked["parameters"] = known_declarations(way.make(), asked["parameters"])
    is_lora, needs_head = own.method == "lora", own.method == "head" and own.trained == "nothing"
    method = getattr(il, own.method)(
        way.make(),
        steps=STEPS,
        adapter=il.AdapterConfig(**own.adapter),
        growth=il.GrowthConfig(**(own.growth | ({"target_rank": 2} if is_lora else {}))),
        is_trained=TRAINED["biases" if needs_head else own.trained],
        dtype=jnp.float64,
        **asked,
    )
    config = il.TrainingConfig(
        learning_rate=1e-2, warmup_steps=0, gradient_accumulation_steps=own.accumulation
    )

    def loss(model, batch):
        return jnp.sum(jnp.square(way.call(model, batch) - 1.0)).astype(float), jnp.asarray(1.0)

    twice = {"shared layer", "read kernel", "read in a stack"}
    is_once = own.is_called_once and not twice & set(own.names)
    trainer, state, base = il.prepare(
        way.make(), method, config, total_steps=STEPS, loss=loss, dtype=jnp.float64,
        is_called_once=is_once,
    )  # fmt: skip
    return Prepared(way, asked, method, trainer, state, base)


def known_declarations(model, parameters):
    """Those of the declarations that match something."""
    known = {}
    for pattern, axes in parameters.items():
        try:
            plan_targets(model, ".*", (), {pattern: axes})
        except il.InputError as error:
            if f"parameters: {pattern!r} matches no" in str(error):
                continue
        known[pattern] = axes
    return known


def check(make_way, own: Drawn) -> bool:
    """Return whether the model could be adapted; whatever must hold of it is asserted."""
    try:
        ready = prepare(make_way, own)
    except il.InputError:
        return False
    way, trainer, base = ready.way, ready.trainer, ready.base
    x = jnp.asarray(np.random.default_rng(1).normal(size=(ROWS, WIDTH)), own.dtype)
    before = jax.tree.map(np.asarray, base)
    if own.method != "lora" or not ready.asked["parameters"]:
        first = trainer.predict(ready.state, base, lambda model: way.call(model, x))
        loose = rounding(own, learns=bool(ready.state.params.head))
        same(first, way.plain(way.make(), x), "at the start", loose)
    state = train(ready, own, x)
    jax.tree.map(np.testing.assert_array_equal, before, base)
    check_names(ready, own, state)
    state = stirred(state)
    check_merge(ready, own, state, x)
    check_influence(ready, state, x)
    if ready.way.name == "nnx" and state.params.adapter:
        check_unmerge(ready, x, rounding(own))
    return True


def rounding(own: Drawn, *, learns: bool = False) -> float:
    """0, but for compiled parts, which are fused otherwise, and one that divides at every call.

    A bf16 model whose own parameters learn computes in float32, in which they do so.
    """
    is_exact = not {"stack", "stack of own", "read in a stack", "recomputed", "weight norm"} & set(
        own.names
    )
    if own.dtype == jnp.bfloat16 and learns:
        is_exact = False
    return 0.0 if is_exact else 0.1 if own.dtype == jnp.bfloat16 else 1e-9


def train(ready: Prepared, own: Drawn, x):
    """Train through all rounds, by one program."""
    batch = jnp.stack([x] * own.accumulation) if own.accumulation > 1 else x
    is_scored = own.method == "increlora"

    @jax.jit
    def step(state, base, batch):
        return ready.trainer.step(state, base, batch, is_scored=is_scored)

    state = ready.state
    for _ in range(STEPS):
        state, info = step(state, ready.base, batch)
        assert bool(info["is_finite"])
    assert step._cache_size() == 1
    if ready.method.rank_budget is not None:
        assert int(state.total_rank) <= ready.method.rank_budget
    return state


def check_names(ready: Prepared, own: Drawn, state) -> None:
    """What is planned, listed and counted has the same names."""
    listed = ready.trainer.skeleton.modules
    assert tuple(il.report(ready.trainer.parts(state, ready.base)).ranks) == listed
    if ready.method.name in ("increlora", "lora"):
        planned = plan_targets(ready.way.make(), **ready.asked).sizes
        assert set(listed) <= set(planned)
        if own.targets == "all-linear" and not own.exclude and own.trained == "nothing":
            assert set(listed) == set(planned)
            assert len(listed) >= sum(MATRICES[ready.way.name].get(name, 0) for name in own.names)


def stirred(state):
    """Updates of all sizes, in masks of all kinds."""
    draw = np.random.default_rng(2)

    def normal(leaf):
        return jnp.asarray(draw.normal(size=leaf.shape) / 2, leaf.dtype)

    adapters = jax.tree.map(normal, state.params.adapter)
    return state._replace(params=state.params._replace(adapter=adapters))


def check_merge(ready: Prepared, own: Drawn, state, x) -> None:
    """The merged model is plain, and computes what the adapted one does."""
    way, trainer = ready.way, ready.trainer
    whole = trainer.predict(state, ready.base, lambda model: way.call(model, x))
    merged = trainer.merge(state, ready.base)
    loose = 0.3 if own.dtype == jnp.bfloat16 else 1e-8  # bf16: W + ΔW is rounded once
    same(whole, way.plain(merged, x), "merged", loose)
    if state.params.adapter:
        assert not np.allclose(whole, way.plain(way.make(), x), rtol=1e-6, atol=1e-6)
    if isinstance(merged, nnx.Module):
        assert not adapters_of(merged)


def check_unmerge(ready: Prepared, x, tolerance: float) -> None:
    """What is merged in place is restored bit for bit, and taken off again."""
    model = ready.way.make()
    names = [path for path, _ in nnx.to_flat_state(nnx.state(model))]
    il.attach(model, **ready.asked)
    for own in adapters_of(model).values():
        own.lam[...] = jnp.ones_like(own.lam[...])
    before = dict(nnx.to_flat_state(nnx.state(model)))
    adapted = ready.way.plain(model, x)
    il.merge(model)
    loose = 0.3 if x.dtype == jnp.bfloat16 else 1e-5
    same(ready.way.plain(model, x), adapted, "merged in place", loose)
    il.unmerge(model)
    after = dict(nnx.to_flat_state(nnx.state(model)))
    assert after.keys() == before.keys()
    for path, variable in before.items():
        if not isinstance(variable, nnx.RngState):
            assert jnp.array_equal(variable[...], after[path][...], equal_nan=True), path
    same(ready.way.plain(model, x), adapted, "unmerged", tolerance)
    il.detach(model)
    assert [path for path, _ in nnx.to_flat_state(nnx.state(model))] == names
    plain = ready.way.plain(ready.way.make(), x)
    same(ready.way.plain(model, x), plain, "detached", tolerance)


def check_influence(ready: Prepared, state, x) -> None:
    """Every module that is listed moves the output."""
    way, trainer = ready.way, ready.trainer

    @jax.jit
    def outputs(alphas):
        def one(alpha):
            scaled = {
                path: adapter._replace(lam=adapter.lam * alpha[path])
                for path, adapter in state.params.adapter.items()
            }
            own = state._replace(params=state.params._replace(adapter=scaled))
            return trainer.predict(own, ready.base, lambda model: way.call(model, x))

        return jax.lax.map(one, alphas)

    stacks = {path: own.lam.shape[:-1] for path, own in state.params.adapter.items()}
    places = [(path, place) for path, shape in stacks.items() for place in np.ndindex(*shape)]
    alphas = {path: np.ones((len(places) + 1, *shape, 1)) for path, shape in stacks.items()}
    for index, (path, place) in enumerate(places):
        alphas[path][(index + 1, *place)] = 2.0
    if places:
        found = np.asarray(outputs(alphas), np.float64)
        for index, name in enumerate(places):
            assert (found[index + 1] != found[0]).any(), f"{name} moves nothing"


def same(got, expected, what, tolerance=0.0):
    got, expected = (np.asarray(value, np.float64) for value in (got, expected))
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance, err_msg=what)


AMOUNTS = pytest.mark.parametrize(
    "examples", [QUICK, pytest.param(THOROUGH, marks=pytest.mark.slow)]
)


@AMOUNTS
@pytest.mark.parametrize("name", WAYS)
def test_adapted_is_merged_and_listed_is_adapted_or_it_is_said(name, examples):
    make_way, names = WAYS[name]
    sound = 0

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(drawn(names))
    def look(own: Drawn) -> None:
        nonlocal sound
        with warnings.catch_warnings(), jax.enable_x64(True):
            warnings.simplefilter("ignore")
            sound += check(make_way, own)

    look()
    assert sound >= examples // 10
