"""Scores of a split against scores made one example at a time."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from increlora_jax.run.build import plan_run, prepare_run
from increlora_jax.run.command_line import parse_run
from increlora_jax.tasks.classification import call_model
from increlora_jax.training.evaluation import Evaluator


@pytest.fixture
def run(short_run):
    return prepare_run(plan_run(parse_run([*short_run, "--max-seq-length", "24"])))


def one_at_a_time(run, state):
    """The predicted classes, without padding and without batches."""
    (encoded,) = run.encoded_dev.values()
    classes = []
    offsets = encoded.ragged["input_ids"].offsets
    for begin, end in itertools.pairwise(offsets):
        own = {name: field.values[begin:end] for name, field in encoded.ragged.items()}
        batch = {name: jnp.asarray(values)[None] for name, values in own.items()}
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
