"""Runs of the smallest model of every family, by how its repeated layers are computed."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from transformers import AutoConfig

from increlora_jax.config import AdapterConfig, GrowthConfig
from increlora_jax.methods.increlora import increlora
from increlora_jax.models.heads import Tokens
from increlora_jax.models.layer_loop import set_scanned
from increlora_jax.models.registry import find_spec
from increlora_jax.models.repeated_layer import layer_parameters, set_places, set_remat
from increlora_jax.tasks.classification import sequence_loss
from tests.families import FAMILIES, SMALL
from tests.tiny import start

STEPS, ROWS = 4, 2
SEQUENCE_LOSS = partial(sequence_loss, is_regression=False)
QUICK = {"xla_backend_optimization_level": 0}
"""The same program; less of the time goes into compiling it."""


def make_model(family, dtype=jnp.float64, **changes):
    """A model with dropout everywhere it can be."""
    settings = SMALL | FAMILIES[family] | {"vocab_size": 50, "attention_dropout": 0.1} | changes
    config = AutoConfig.for_model(family, **settings)
    spec = find_spec(config)
    build = spec.heads["sequence_classification"]
    model = build(config, num_labels=2, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0))
    return model, spec


def rows_of(seed, length=5):
    """A batch with padding in it."""
    ids = np.random.default_rng(seed).integers(4, 50, (ROWS, length))
    mask = np.ones_like(ids)
    mask[0, -2:] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return batch | {"labels": np.array([0, 1]), "weight": np.ones(ROWS)}


def mean_loss(model, batch):
    """The loss of sequences that are judged by all of their tokens."""
    states = model.encode(Tokens(*(batch[name] for name in Tokens._fields[:3])))
    logits = model.compute_logits(states.mean(axis=1))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
    return losses.sum(), batch["weight"].sum()


def begin(
    family,
    remat,
    dtype=jnp.float64,
    *,
    is_scanned=False,
    is_called_once=False,
    loss=SEQUENCE_LOSS,
    layout_of=None,
    **changes,
):
    """A run whose every λ is away from 0, so that there is something to score."""
    model, spec = make_model(family, dtype, **changes)
    set_remat(model, remat)
    if is_scanned:
        set_scanned(model)
    if layout_of is not None:
        late = layer_parameters(model)
        set_places(model, layout_of(spec, frozenset(late)).in_use(late))
    method = increlora(
        model,
        steps=STEPS,
        targets=spec.target_modules,
        adapter=AdapterConfig(lora_dropout=0.1),
        growth=GrowthConfig(target_rank=1.5, top_h=16, init_warmup=0, incre_interval=1),
        is_trained=lambda path: path.startswith(spec.modules_to_save["sequence_classification"]),
        dtype=dtype,
    )
    begun = start(
        method,
        steps=STEPS,
        dtype=dtype,
        model=model,
        loss=loss,
        is_called_once=is_called_once,
    )
    params = begun.state.params
    moved = {name: each._replace(lam=each.lam + 0.5) for name, each in params.adapter.items()}
    return begun._replace(state=begun.state._replace(params=params._replace(adapter=moved)))


def lower(begun, batch, **options):
    """The loss and its gradients as a program."""

    def loss(model, batch):
        return begun.trainer.loss(model, batch)[0]

    of_all = jax.jit(begun.trainer.value_and_grad(loss), static_argnames="is_scored")
    return of_all.lower(begun.state, begun.parts.base, batch, **options)


def differentiate(family, remat, **how):
    """The loss, its gradients and the scores, in float64 where that is on."""
    begun, batch = begin(family, remat, **how), rows_of(0)
    program = lower(begun, batch, is_scored=True).compile(compiler_options=QUICK)
    return program(begun.state, begun.parts.base, batch)


def assert_close(got, expected):
    """Alike but for the order of additions."""
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-15)
