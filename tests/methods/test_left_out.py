"""What learns in full gets no adapter beside, by every way in and every method that adapts."""

import flax.linen as nn
import jax.numpy as jnp
import pytest
from flax import nnx

from increlora_jax.config import AdapterConfig, GrowthConfig, RunConfig, TrainingConfig
from increlora_jax.errors import InputError
from increlora_jax.methods.increlora import increlora
from increlora_jax.methods.lora import lora
from increlora_jax.methods.registry import build_method
from increlora_jax.models.registry import abstract_model, find_spec
from increlora_jax.nn.any_model import parameter_selector
from increlora_jax.nn.linen import LinenModel
from increlora_jax.training.prepare import prepare
from increlora_jax.weights.bundled import TINY_ENCODER
from increlora_jax.weights.folder import read_config

GROWTH = GrowthConfig(target_rank=2, top_h=2, init_warmup=0, incre_interval=1)
METHODS = {"increlora": lambda model, **given: increlora(model, steps=8, **given), "lora": lora}


class Net(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.body, self.head = nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)
        self.tied = nnx.Linear(4, 4, rngs=rngs)
        self.tied.kernel = self.head.kernel


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4, name="body")(x)
        return nn.Dense(4, name="head")(x)


def linen():
    x = jnp.ones((1, 4))
    return LinenModel(LinenNet(), LinenNet().init(nnx.Rngs(0).params(), x), x)


def tree():
    return {"body": jnp.ones((4, 4)), "head": jnp.ones((4, 4))}


WAYS = {"nnx": (Net, ("head", "tied")), "linen": (linen, ("head",)), "tree": (tree, ("head",))}


@pytest.mark.filterwarnings("ignore:modules_to_save")
@pytest.mark.parametrize("targets", ["all-linear", ["body", "head"]])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("way", WAYS)
def test_targets_that_learn_in_full_are_left_out_and_named(way, method, targets):
    make, out = WAYS[way]
    out = out if targets == "all-linear" else ("head",)
    model = make()
    settings = {"adapter": AdapterConfig(), "growth": GROWTH, "targets": targets}
    settings["is_trained"] = parameter_selector(model, ["head"])
    made = METHODS[method](model, **settings)
    many = "2 targets" if len(out) > 1 else "1 target"
    assert f"; {many} left out, trained in full: {', '.join(out)}" in made.description
    trainer, state, _ = prepare(model, made, TrainingConfig(), total_steps=8)
    assert trainer.skeleton.modules == ("body",)
    assert list(state.params.adapter) == ["body"]
    with pytest.raises(InputError, match=r"all of them \(head\) are trained in full"):
        METHODS[method](make(), **(settings | {"targets": ["head"]}))


@pytest.mark.parametrize("name", METHODS)
def test_all_linear_leaves_out_the_default_modules_to_save(name):
    config = read_config(TINY_ENCODER)
    model, saved = (
        abstract_model(config, num_labels=2),
        find_spec(config).modules_to_save["sequence_classification"],
    )
    adapter = AdapterConfig(method=name, target_modules=["all-linear"])
    made = build_method(
        model,
        RunConfig(adapter=adapter, growth=GROWTH),
        steps=99,
        default_targets="",
        default_modules_to_save=list(saved),
    )
    assert "2 targets left out, trained in full: bert.pooler.dense, classifier" in made.description
    assert "12 modules" in made.description
