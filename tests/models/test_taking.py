"""A last layer that makes only the states which are read: the same numbers, for less work."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from increlora_jax.models.heads import Tokens
from increlora_jax.models.layer_loop import set_scanned
from increlora_jax.models.taking import take_all, take_first, take_firsts, take_places
from tests.families import FAMILIES
from tests.repeated import QUICK, assert_close, make_model, rows_of

HIDDEN = jnp.arange(12.0).reshape(2, 3, 2)


@pytest.mark.parametrize(
    ("take", "taken"),
    [
        (take_all, [[[0, 1], [2, 3], [4, 5]], [[6, 7], [8, 9], [10, 11]]]),
        (take_first, [[[0, 1]], [[6, 7]]]),
        (take_places(jnp.array([2, 0])), [[[4, 5]], [[6, 7]]]),
        (take_firsts(jnp.array([4, 0, 1])), [[[8, 9]], [[0, 1]], [[2, 3]]]),
    ],
)
def test_what_is_taken(take, taken):
    assert take(HIDDEN).tolist() == taken


LAYERS = {"t5": {"num_layers": 2}, "gpt2": {"n_layer": 2}, "bart": {"decoder_layers": 2}}


def make(family):
    model, _ = make_model(family, **LAYERS.get(family, {"num_hidden_layers": 2}))
    model.eval()
    return model


def score_whole(model, tokens):
    """The logits where the last layer makes all states, and one is taken then."""
    return model.compute_logits(model.choose(tokens)(model.encode(tokens))[:, 0])


def score(model, tokens):
    return model(*tokens[:3])


def compile_gradients(score, model):
    """Logits, and the gradients of a number that each of them changes, as a program."""
    tokens = Tokens(*(jnp.asarray(rows_of(0)[name]) for name in Tokens._fields[:3]))
    graphdef, weights, rest = nnx.split(model, nnx.Param, ...)

    def compute(weights, rest):
        logits = score(nnx.merge(graphdef, weights, rest), tokens)
        return jnp.sum(jnp.sin(logits)), logits

    lowered = jax.jit(jax.value_and_grad(compute, has_aux=True)).lower(weights, rest)
    return lowered.compile(compiler_options=QUICK), (weights, rest)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_are_those_of_a_whole_last_layer_for_less_work(family):
    with jax.enable_x64(True):
        program, numbers = compile_gradients(score, make(family))
        whole, _ = compile_gradients(score_whole, make(family))
        jax.tree.map(assert_close, program(*numbers), whole(*numbers))
    flops, flops_of_whole = (each.cost_analysis()["flops"] for each in (program, whole))
    assert flops < 0.9 * flops_of_whole


def test_only_what_is_taken_asks_in_the_last_layer_of_bert(monkeypatch):
    call, asked = nnx.Linear.__call__, []
    with jax.enable_x64(True):
        model = make("bert")
        queries = [layer.attention.self.query for layer in model.bert.encoder.layer]

        def recorded(self, inputs, *options):
            if any(self is query for query in queries):
                asked.append(inputs.shape[:2])
            return call(self, inputs, *options)

        monkeypatch.setattr(nnx.Linear, "__call__", recorded)
        model(*(jnp.asarray(rows_of(0)[name]) for name in Tokens._fields[:3]))
    assert asked == [(2, 5), (2, 1)]


def test_it_is_taken_after_a_loop_too():
    with jax.enable_x64(True):
        model = make("bert")
        set_scanned(model)
        program, numbers = compile_gradients(score, model)
        whole, _ = compile_gradients(score_whole, make("bert"))
        jax.tree.map(assert_close, program(*numbers), whole(*numbers))


def test_a_model_of_no_more_layers_than_its_convolution_takes_too():
    with jax.enable_x64(True):
        model, _ = make_model("deberta-v2", num_hidden_layers=1, conv_kernel_size=3)
        model.eval()
        (program, numbers), (whole, _) = (compile_gradients(s, model) for s in (score, score_whole))
        jax.tree.map(assert_close, program(*numbers), whole(*numbers))
