import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from increlora_jax.tasks.classification import call_model, sequence_loss


class Recorder(nnx.Module):
    """Gives the logits it was made with, and keeps what it was called with."""

    def __init__(self, logits):
        self.logits = nnx.Variable(jnp.asarray(logits))

    def __call__(self, input_ids, attention_mask, token_type_ids):
        self.seen = nnx.static((input_ids, attention_mask, token_type_ids))
        return self.logits[...]


BATCH = {"input_ids": "ids", "attention_mask": "mask", "token_type_ids": "types"}
LOGITS = np.array([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0], [2.0, 2.0, 2.0]], np.float32)
WEIGHT = np.array([1.0, 0.5, 0.0], np.float32)


def test_inputs_go_to_the_model_under_their_names():
    model = Recorder(LOGITS)
    np.testing.assert_array_equal(call_model(model, BATCH | {"labels": 1}), LOGITS)
    assert model.seen == ("ids", "mask", "types")


@pytest.mark.parametrize(
    ("dtype", "wide"), [("bfloat16", "float32"), ("float16", "float32"), ("float32", "float32")]
)
def test_logits_are_at_least_float32(dtype, wide):
    assert call_model(Recorder(jnp.asarray(LOGITS, dtype)), BATCH).dtype == wide


def test_cross_entropy_of_classes_by_weight():
    labels = np.array([2, 1, 0])
    logits = LOGITS.astype(np.float64)
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(3), labels]
    batch = BATCH | {"labels": jnp.asarray(labels), "weight": jnp.asarray(WEIGHT)}
    total, weight = sequence_loss(Recorder(LOGITS), batch, is_regression=False)
    np.testing.assert_allclose(total, losses @ WEIGHT, rtol=1e-6)  # float32
    assert weight == 1.5


def test_squared_error_of_scores_by_weight():
    scores, labels = LOGITS[:, :1], np.array([0.5, -1.0, 77.0], np.float32)
    batch = BATCH | {"labels": jnp.asarray(labels), "weight": jnp.asarray(WEIGHT)}
    total, weight = sequence_loss(Recorder(scores), batch, is_regression=True)
    # (1 − 0.5)² + ½ · (0 + 1)²; the row of weight 0 has no part.
    np.testing.assert_allclose(total, 0.75, rtol=1e-6)
    assert weight == 1.5
