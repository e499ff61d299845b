"""Folders with only `spm.model` tokenize as the sentencepiece library does."""

import json
import shutil

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from increlora_jax.errors import InputError
from increlora_jax.weights.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def folder(sentencepiece_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("deberta")
    shutil.copy(sentencepiece_file, folder / "spm.model")
    config = {"model_type": "deberta-v2", "vocab_size": 100}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def processor(sentencepiece_file):
    return sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_file))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder)


def test_it_is_fast_and_frames_pairs_as_deberta_does(tokenizer, processor):
    assert tokenizer.is_fast
    good, bad = processor.encode("good film"), processor.encode("bad")
    batch = tokenizer(["good film", "a"], ["bad", "a"], padding=True)
    assert batch["input_ids"][0] == [1, *good, 2, *bad, 2]
    assert batch["token_type_ids"][0] == [0] * (len(good) + 2) + [1] * (len(bad) + 1)
    assert tokenizer.pad_token_id == 0
    assert batch["input_ids"][1][-1] == 0


def test_the_mask_comes_after_the_pieces(tokenizer, processor):
    assert tokenizer.mask_token_id == len(processor) == len(tokenizer) - 1


# Letters that are known and that are not, spaces of all kinds, and characters that normalization
# changes. No combining marks: the tokenizers library normalizes by the visible character, so that
# a mark behind a changed character is lost, which sentencepiece keeps.
CHARACTERS = "  abdefgilmnopt.!▁日éΩ①ﬁﬀｆｉｌｍ½\t\n\r\u00a0\u00ad\u200b\u2009\u2028\u3000\u0085\0"


@given(text=st.text(CHARACTERS, max_size=20))
@settings(max_examples=500, deadline=None, derandomize=True)
def test_ids_are_those_of_the_sentencepiece_library(text, tokenizer, processor):
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == processor.encode(text)


def test_lower_case_is_kept(folder, tmp_path, processor):
    shutil.copytree(folder, tmp_path / "lower")
    (tmp_path / "lower" / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    tokenizer = load_tokenizer(tmp_path / "lower")
    ids = tokenizer("GOOD Ｆilm", add_special_tokens=False)["input_ids"]
    assert ids == processor.encode("good film")


def test_a_damaged_file_is_named(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "damaged")
    content = (folder / "spm.model").read_bytes()
    (tmp_path / "damaged" / "spm.model").write_bytes(content[:-500])
    with pytest.raises(InputError, match=r"damaged: transformers cannot read the tokenizer"):
        load_tokenizer(tmp_path / "damaged")
