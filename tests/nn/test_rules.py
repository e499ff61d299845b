"""What changes an adapter's numbers and is none of its arrays is saved with it, and compared."""

import json
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import increlora_jax as il
from increlora_jax.core.adapter import Scaling
from increlora_jax.errors import InputError
from increlora_jax.nn.adapter_files import CONFIG, load_adapter, save_adapter

X = jnp.ones((2, 4))


class Own(nnx.Module):
    """A module of one layer and one parameter of its own."""

    def __init__(self):
        self.layer = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
        self.w = nnx.Param(jnp.ones((4, 4)))

    def __call__(self, x):
        return self.layer(x) @ self.w[...]


def linen():
    module = nn.Dense(4)
    wrapped = nn.Sequential([module])
    return il.LinenModel(wrapped, wrapped.init(jax.random.key(0), X), X)


WAYS = {"nnx": Own, "linen": linen, "tree": lambda: {"w": jnp.ones((4, 4))}}


BY_RANK = Scaling(16.0)


def parts_of(way, scaling=BY_RANK, **settings):
    model = il.attach(WAYS[way](), scaling=scaling, max_rank=2, **settings)
    return il.split(model, lambda path: False)[1]


OTHERS = {
    "alpha": (Scaling(32.0), r"lora_alpha 16.0, and the model here has 32.0"),
    "rule": (Scaling(16.0, "rsqrt"), r"scaling rank, and the model here has rsqrt"),
    "target": (Scaling(16.0, "target", 2), r"scaling rank, and the model here has target"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("other", OTHERS)
def test_an_adapter_of_another_scale_is_refused_with_both_values(way, other, tmp_path):
    scaling, message = OTHERS[other]
    save_adapter(tmp_path / "a", parts_of(way))
    with pytest.raises(InputError, match=rf"adapter_config.json: .*made with {message}"):
        load_adapter(tmp_path / "a", parts_of(way, scaling))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_adapter(tmp_path / "a", parts_of(way, Scaling(16.0 + 1e-6)))  # but for rounding


def test_the_target_rank_counts_where_the_scale_follows_it(tmp_path):
    save_adapter(tmp_path / "a", parts_of("nnx", Scaling(16.0, "target", 2)))
    with pytest.raises(InputError, match=r"target_rank 2.0, and the model here has 4.0"):
        load_adapter(tmp_path / "a", parts_of("nnx", Scaling(16.0, "target", 4)))
    save_adapter(tmp_path / "b", parts_of("nnx", Scaling(16.0, "rank", 2)))
    load_adapter(tmp_path / "b", parts_of("nnx", Scaling(16.0, "rank", 4)))


@pytest.mark.parametrize("way", ["nnx", "tree"])
def test_a_square_parameter_taken_the_other_way_round_is_refused(way, tmp_path):
    def parts(axes):
        return parts_of(way, targets="w", parameters={"w": il.KernelAxes(*axes)})

    save_adapter(tmp_path / "a", parts(((0,), (1,))))
    load_adapter(tmp_path / "a", parts(((-2,), (-1,))))
    with pytest.raises(InputError, match=r"the axes of w \[\[-2\], \[-1\]\], and the model here"):
        load_adapter(tmp_path / "a", parts(((1,), (0,))))


@pytest.mark.parametrize("method", ["increlora", "lora"])
def test_a_trainer_saves_the_rule_that_its_state_follows(method, tmp_path):
    growth = il.GrowthConfig(top_h=1, init_warmup=0, incre_interval=2)

    def begin(alpha):
        model = Own()
        adapter = il.AdapterConfig(lora_alpha=alpha)
        made = getattr(il, method)(model, steps=9, growth=growth, adapter=adapter)
        return il.prepare(model, made, total_steps=9)

    trainer, state, base = begin(16.0)
    varied = trainer.init(trainer.parts(state, base), 0, {"lora_alpha": 0.1})
    save_adapter(tmp_path / "a", trainer.parts(state, base))
    save_adapter(tmp_path / "b", trainer.parts(varied, base))
    told = [json.loads((tmp_path / name / CONFIG).read_text())["applied"] for name in "ab"]
    assert [own["lora_alpha"] for own in told] == pytest.approx([16.0, 0.1])
    other, first, base = begin(0.1)
    load_adapter(tmp_path / "b", other.parts(first, base))
    with pytest.raises(InputError, match=r"lora_alpha 16.0, and the model here has 0.1"):
        load_adapter(tmp_path / "a", other.parts(first, base))


def test_an_adapter_that_does_not_say_its_scale_is_loaded_with_a_warning(tmp_path):
    parts = parts_of("nnx")
    save_adapter(tmp_path / "a", parts._replace(rules=None), {"loss": float("nan")})
    with pytest.warns(UserWarning, match="does not say .*lora_alpha 16.0 and scaling 'rank'"):
        load_adapter(tmp_path / "a", parts)
    (tmp_path / "a" / CONFIG).unlink()
    with pytest.warns(UserWarning, match="does not say"):
        load_adapter(tmp_path / "a", parts)


def test_an_adapter_of_an_older_run_is_compared_by_what_it_says(tmp_path):
    parts, said = parts_of("nnx"), {"lora_alpha": 16.0, "scaling": "rank"}
    save_adapter(tmp_path / "a", parts._replace(rules=None), said)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_adapter(tmp_path / "a", parts)
    with pytest.raises(InputError, match=r"lora_alpha 16.0, and the model here has 8.0"):
        load_adapter(tmp_path / "a", parts_of("nnx", Scaling(8.0)))
    # The LoRA of older versions was always scaled by α/r.
    save_adapter(tmp_path / "b", parts._replace(rules=None), said | {"method": "lora"})
    load_adapter(tmp_path / "b", parts_of("nnx", Scaling(16.0, "target", 2)))
    with pytest.raises(InputError, match=r"scaling target, and the model here has rsqrt"):
        load_adapter(tmp_path / "b", parts_of("nnx", Scaling(16.0, "rsqrt", 2)))


@pytest.mark.parametrize(
    ("applied", "message"),
    [
        ([], "unknown key|is missing"),
        ({"lora_alpha": 16.0}, "'scaling' is missing"),
        ({"lora_alpha": "16", "scaling": "rank"}, "lora_alpha is '16' where float is needed"),
        ({"lora_alpha": 16.0, "scaling": "rank", "more": 1}, "unknown key 'more'"),
    ],
)
def test_damaged_rules_are_refused(applied, message, tmp_path):
    parts = parts_of("nnx")
    save_adapter(tmp_path / "a", parts)
    (tmp_path / "a" / CONFIG).write_text(json.dumps({"applied": applied}))
    with pytest.raises(InputError, match=message):
        load_adapter(tmp_path / "a", parts)
