"""Scores of a split against scores made one example at a time."""

import jax.numpy as jnp
import numpy as np
import pytest

from increlora_jax.run.build import plan_run, prepare_run
from increlora_jax.run.command_line import parse_run
from increlora_jax.training.evaluation import Evaluator
from increlora_jax.training.loss import call_model


@pytest.fixture
def run(short_run):
    return prepare_run(plan_run(parse_run([*short_run, "--max-seq-length", "24"])))


def one_at_a_time(run, state):
    """The predicted classes, without padding and without batches."""
    (encoded,) = run.encoded_dev.values()
    classes = []
    for begin, end in zip(encoded.offsets, encoded.offsets[1:], strict=False):
        ids = jnp.asarray(encoded.token_ids[begin:end])[None]
        types = jnp.asarray(encoded.token_types[begin:end])[None]
        batch = {"input_ids": ids, "attention_mask": jnp.ones_like(ids), "token_type_ids": types}
        logits = run.trainer.predict(state, run.parts.base, lambda m, b=batch: call_model(m, b))
        classes.append(int(logits.argmax()))
    return np.array(classes)


@pytest.mark.parametrize("batch_size", [10**12, 7])  # the split is smaller, or larger
def test_no_example_is_dropped_or_swapped(run, batch_size):
    state = run.first_state()
    evaluator = Evaluator(
        run.trainer,
        run.plan.layout,
        run.plan.data,
        run.encoded_dev,
        batch_size=batch_size,
        buckets=run.buckets,
    )
    labels = run.plan.data.dev["dev"].labels
    expected = np.mean(one_at_a_time(run, state) == labels)
    assert evaluator.metrics(state, run.parts.base) == {"accuracy": pytest.approx(expected)}
