"""Sequences that share rows: each is read as in a row of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from increlora_jax.errors import InputError
from increlora_jax.models.packing import count_places, find_seen
from increlora_jax.models.registry import find_spec
from increlora_jax.tasks.kind import Encoded, Ragged
from increlora_jax.tasks.packing import pack_batch, pack_lengths
from tests.models.test_deberta import SWITCHES, V3
from tests.models.test_roberta import PAD, ROBERTA
from tests.tiny_bert import write_config

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
MODELS = {
    "bert": ({}, 0),
    "roberta": (ROBERTA, PAD),
    "deberta-v3": (V3, 0),
    "deberta with absolute positions": (V3 | SWITCHES["absolute-positions"], 0),
}


def test_a_query_sees_the_tokens_of_its_own_sequence():
    mask = jnp.array([[1, 1, 2, 0]])
    assert find_seen(mask, is_packed=False).tolist() == [[[[True, True, True, False]]]]
    own = [[True, True, False, False]] * 2 + [[False, False, True, False]] + [[False] * 4]
    assert find_seen(mask, is_packed=True).tolist() == [[own]]


def test_places_are_counted_anew_in_each_sequence():
    sequences = jnp.array([[1, 1, 1, 2, 3, 3, 0], [1, 0, 0, 0, 0, 0, 0]])
    is_counted = jnp.array([[1, 0, 1, 1, 0, 1, 0], [1, 0, 0, 0, 0, 0, 0]], bool)
    assert count_places(is_counted, None).tolist() == [[1, 1, 2, 3, 3, 4, 4], [1] * 7]
    counts = count_places(is_counted, sequences)[:, :-1].tolist()
    assert counts == [[1, 1, 2, 1, 0, 1], [1, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize(("changes", "pad"), MODELS.values(), ids=MODELS)
def test_packed_sequences_have_the_logits_and_gradients_of_their_own_rows(
    changes, pad, make_batch, tmp_path
):
    """A padding token within a text too: RoBERTa gives it no position."""
    batch = make_batch(batch=7, length=12)
    batch["input_ids"] = np.where(batch["attention_mask"], batch["input_ids"], pad)
    batch["input_ids"][0, 3] = PAD
    if not changes.get("type_vocab_size", 2) > 1:
        batch["token_type_ids"][:] = 0
    config = write_config(tmp_path / "config", **changes)
    with jax.enable_x64(True):
        model = find_spec(config).heads["sequence_classification"](
            config, num_labels=3, dtype=jnp.float64, param_dtype=jnp.float64, rngs=nnx.Rngs(0)
        )
        model.eval()
        got, expected = (answer(model, b) for b in (packed(batch, pad), batch))
        for one, other in zip(*map(jax.tree.leaves, (got, expected)), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


def answer(model, batch):
    """Logits, and the gradients of a number that each of them changes."""

    def compute(model):
        logits = model(**batch)
        return jnp.sum(jnp.sin(logits)), logits

    (_, logits), gradients = nnx.jit(nnx.value_and_grad(compute, has_aux=True))(model)
    return logits, nnx.to_pure_dict(gradients)


def packed(batch, pad):
    """The same sequences, several in a row of twelve tokens."""
    is_token = batch["attention_mask"] > 0
    lengths = is_token.sum(axis=1)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    fields = {name: Ragged(batch[name][is_token], offsets) for name in INPUTS}
    fields["input_ids"] = fields["input_ids"]._replace(fill=pad)
    encoded = Encoded(fields, {"labels": np.zeros(len(lengths), np.int32)})
    rows, examples = pack_lengths(lengths, 12), np.arange(len(lengths))
    assert len(rows) < len(lengths)
    shape = (len(rows) + 1, 12)
    own = pack_batch(encoded, examples, rows, batch_size=len(lengths), shape=shape)
    return {name: own[name] for name in (*INPUTS, "firsts")}


@pytest.mark.parametrize(
    "changes",
    [
        V3 | SWITCHES["v2-xlarge"],
        {"model_type": "gpt2", "n_embd": 32, "n_head": 4, "n_layer": 1, "pad_token_id": 0},
    ],
    ids=["a convolution", "judged by the last token"],
)
def test_what_cannot_read_them_refuses(changes, make_batch, tmp_path):
    config = write_config(tmp_path / "config", **changes)
    head = find_spec(config).heads["sequence_classification"]
    model = head(config, num_labels=3, rngs=nnx.Rngs(0))
    assert not model.can_pack
    with pytest.raises(InputError, match="does not read packed sequences"):
        model(**make_batch(), firsts=jnp.zeros(1, jnp.int32))
