"""AdaLoRA, step by step beside PEFT's, and what it leaves."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import increlora_jax as il
from increlora_jax.core.adapter import Adapter
from increlora_jax.errors import InputError
from increlora_jax.nn.skeleton import Parts

STEPS, RATE, ROWS = 60, 0.02, 16
SCHEDULE = {"init_r": 5, "tinit": 8, "tfinal": 20, "delta_t": 4}
WIDTHS = {"first": (7, 9), "second": (9, 6), "third": (6, 8)}


def draw_batch(step):
    draw = np.random.default_rng(1000 + step)
    return draw.normal(size=(ROWS, 7)), draw.normal(size=(ROWS, 8))


@pytest.fixture
def float64():
    """Compute in double precision."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def weights():
    draw = np.random.default_rng(4)
    return {name: draw.normal(size=size) / np.sqrt(size[0]) for name, size in WIDTHS.items()}


class Peft:
    """PEFT's AdaLoRA in float64, driven as its documentation says."""

    def __init__(self, weights):
        torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
        self.torch = torch

        class Net(torch.nn.Module):
            def __init__(self):
                super().__init__()
                for name, (inputs, outputs) in WIDTHS.items():
                    setattr(self, name, torch.nn.Linear(inputs, outputs, bias=False))

            def forward(self, x, y):
                x = torch.tanh(self.second(torch.tanh(self.first(x))))
                return SimpleNamespace(loss=((self.third(x) - y) ** 2).mean())

        torch.manual_seed(0)
        net = Net().double()
        for name, weight in weights.items():
            getattr(net, name).weight.data = torch.tensor(weight.T)
        config = peft.AdaLoraConfig(
            init_r=SCHEDULE["init_r"], target_r=2, tinit=SCHEDULE["tinit"],
            tfinal=SCHEDULE["tfinal"], deltaT=SCHEDULE["delta_t"], beta1=0.85, beta2=0.8,
            orth_reg_weight=0.3, total_step=STEPS, lora_alpha=8, target_modules=list(WIDTHS),
        )  # fmt: skip
        self.model = peft.get_peft_model(net, config).double()
        # PEFT leaves `ranknum`, the count of slots in the scale, trainable; a count must not learn.
        trained = [p for name, p in self.model.named_parameters() if ".lora_" in name]
        self.optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)

    def adapters(self):
        layers = {name: getattr(self.model.base_model.model, name) for name in WIDTHS}

        def of(layer, name):
            return getattr(layer, f"lora_{name}")["default"].detach().numpy().copy()

        return {
            name: Adapter(A=of(one, "A").T, lam=of(one, "E")[:, 0], B=of(one, "B").T)
            for name, one in layers.items()
        }

    def step(self, number):
        x, y = map(self.torch.tensor, draw_batch(number))
        loss = self.model.base_model(x, y).loss  # whose forward adds the orthogonality
        loss.backward()
        self.optimizer.step()
        self.model.base_model.update_and_allocate(number)
        self.optimizer.zero_grad()
        return loss.item()

    def kept(self):
        """The slots of every module that the last choice kept."""
        pattern = self.model.peft_config["default"].rank_pattern
        return {
            name: [kept for key, own in pattern.items() if name in key.split(".") for kept in own]
            for name in WIDTHS
        }


def prepare(weights, **changes):
    growth = il.GrowthConfig(target_rank=2, beta1=0.85, beta2=0.8, reg_orth_coef=0.3)
    method = il.adalora(
        weights,
        steps=STEPS,
        config=il.PruningConfig(**(SCHEDULE | changes)),
        adapter=il.AdapterConfig(lora_alpha=8.0),
        growth=growth,
        dtype=jnp.float64,
    )
    config = il.TrainingConfig(
        learning_rate=RATE, warmup_steps=0, lr_scheduler_type="constant_with_warmup",
        max_grad_norm=1e9,
    )  # fmt: skip
    return il.prepare(weights, method, config, total_steps=STEPS, dtype=jnp.float64)


def loss_of(model, x, y):
    x = jnp.tanh(jnp.tanh(x @ model["first"]) @ model["second"])
    return jnp.mean((x @ model["third"] - y) ** 2)


def run(trainer, state, base):
    """The state, the loss and the rank of every module after each step."""

    @jax.jit
    def step(state, base, x, y):
        _, gradients = trainer.value_and_grad(loss_of)(state, base, x, y)
        return trainer.update(state, gradients)

    for number in range(STEPS):
        state, info = step(state, base, *map(jnp.asarray, draw_batch(number)))
        yield state, info
    assert step._cache_size() == 1


def test_every_step_is_that_of_peft(float64, weights):
    peft = Peft(weights)
    trainer, state, base = prepare({name: jnp.asarray(w) for name, w in weights.items()})
    begun = jax.tree.map(jnp.asarray, peft.adapters())
    state = state._replace(params=state.params._replace(adapter=begun))
    compared = 0
    for number, (now, info) in enumerate(run(trainer, state, base)):
        loss = float(info["loss"] + 0.3 * info["orth_loss"])
        np.testing.assert_allclose(loss, peft.step(number), rtol=1e-9)
        for name, expected in peft.adapters().items():
            got = now.params.adapter[name]
            kept = np.asarray(~now.slots[name].reserve)
            np.testing.assert_allclose(got.A, expected.A, rtol=1e-6, atol=1e-9)
            np.testing.assert_allclose(got.B, expected.B, rtol=1e-6, atol=1e-9)
            np.testing.assert_allclose(
                np.where(now.slots[name].active, got.lam, 0), expected.lam, rtol=1e-6, atol=1e-9
            )
            if peft.model.peft_config["default"].rank_pattern:
                assert kept.tolist() == peft.kept()[name]
                compared += 1
    assert compared > 100
    assert int(now.total_rank) == 2 * len(WIDTHS)


def test_a_masked_slot_may_come_back_and_in_the_end_may_not(float64, weights):
    trainer, state, base = prepare({name: jnp.asarray(w) for name, w in weights.items()})
    history = [now for now, _ in run(trainer, state, base)]
    kept = np.stack([np.concatenate([~s.reserve for s in now.slots.values()]) for now in history])
    back = (~kept[:-1] & kept[1:]).any(axis=1)
    assert back[: STEPS - SCHEDULE["tfinal"]].any()
    assert not back[STEPS - SCHEDULE["tfinal"] :].any()
    totals = kept.sum(axis=1)
    assert totals[0] == 15
    assert (np.diff(totals) <= 0).all()
    assert totals[-1] == 6
    for own, slots in zip(
        history[-1].params.adapter.values(), history[-1].slots.values(), strict=True
    ):
        assert not np.asarray(own.lam)[np.asarray(slots.reserve)].any()
        assert (np.asarray(slots.active) == ~np.asarray(slots.reserve)).all()


def test_the_merged_model_is_the_adapted_one(float64, weights):
    trainer, state, base = prepare({name: jnp.asarray(w) for name, w in weights.items()})
    *_, (state, _) = run(trainer, state, base)
    x, y = map(jnp.asarray, draw_batch(0))
    adapted = trainer.predict(state, base, lambda model: loss_of(model, x, y))
    np.testing.assert_allclose(loss_of(trainer.merge(state, base), x, y), adapted, rtol=1e-12)
    parts = trainer.parts(state, base)
    assert isinstance(parts, Parts)
    assert il.report(parts).total_rank == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_r": 7}, "--init-r 7 exceeds the kernel of second"),
        ({"init_r": 1}, "--init-r 1: 3 modules have 3 slots, fewer than the budget of 6"),
        ({"tinit": 40}, "--tinit 40 and --tfinal 20 leave none of 60 steps"),
    ],
)
def test_a_schedule_that_does_not_fit_is_refused(weights, changes, message):
    with pytest.raises(InputError, match=message):
        prepare(weights, **changes)
