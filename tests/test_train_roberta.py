"""RoBERTa through the training command, with a tokenizer of its own kind."""

import json

import numpy as np
import pytest
from flax import nnx
from tokenizers import ByteLevelBPETokenizer

from increlora_jax import train
from increlora_jax.models.roberta import ROBERTA_WEIGHTS, RobertaForMaskedLM
from increlora_jax.tasks.encoding import encode_texts
from increlora_jax.tasks.labelled_texts import Texts
from increlora_jax.weights.folder import save_weights
from increlora_jax.weights.tokenizer import load_tokenizer

SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


@pytest.fixture(scope="module")
def roberta_model(tmp_path_factory, toy_data):
    """A folder as pretraining leaves it: a masked-LM head, bytes merged into words."""
    from transformers import RobertaConfig, RobertaTokenizer

    folder = tmp_path_factory.mktemp("tiny-roberta")
    bytes_and_merges = ByteLevelBPETokenizer()
    texts = str(toy_data / "train.tsv")
    bytes_and_merges.train(texts, special_tokens=SPECIALS, show_progress=False)
    bytes_and_merges.save_model(str(folder))
    RobertaTokenizer.from_pretrained(folder).save_pretrained(folder)
    config = RobertaConfig(
        vocab_size=bytes_and_merges.get_vocab_size(),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=18,  # 16 tokens, and two rows that are none's
        type_vocab_size=1,
        initializer_range=0.2,
    )
    config.save_pretrained(folder)
    save_weights(RobertaForMaskedLM(config, rngs=nnx.Rngs(0)), folder, ROBERTA_WEIGHTS)
    return folder


def test_its_tokenizer_marks_padding_as_the_model_counts_it(roberta_model):
    """Positions follow the ids, attention the mask: the tokenizer makes both say the same."""
    batch = load_tokenizer(roberta_model)(["good film", "bad"], padding=True, return_tensors="np")
    assert batch["input_ids"][1].tolist() == [0, batch["input_ids"][1, 1], 2, 1]
    assert ((batch["input_ids"] != 1) == batch["attention_mask"]).all()
    assert "token_type_ids" not in batch


def test_pairs_of_texts_are_cut_as_its_tokenizer_cuts(roberta_model):
    """Their separator is two tokens, and their second text has no type of its own."""
    tokenizer = load_tokenizer(roberta_model)
    split = Texts(["good film " * 9, "the plot"], ["bad plot", "a film"], np.zeros(2, np.int32))
    encoded = encode_texts(split, tokenizer, 12)
    expected = tokenizer(split.first, split.second, truncation="longest_first", max_length=12)
    ids = encoded.ragged["input_ids"]
    np.testing.assert_array_equal(ids.values, np.concatenate(expected["input_ids"]))
    assert len(encoded.notes) == 1
    assert not encoded.ragged["token_type_ids"].values.any()
    assert ids.fill == 1


def test_it_grows_to_its_budget_without_compiling_anew(roberta_model, short_run, tmp_path):
    train.main([*short_run, "--model", str(roberta_model)])
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["total_rank"] == results["rank_budget"] == 24 == sum(results["ranks"].values())
    assert list(results["rounds"]) == ["2", "4", "6"]
    assert all(sum(growth.values()) == 4 for growth in results["rounds"].values())
    assert results["step_compilations"] == 2  # one length: scored while there is budget, then not
