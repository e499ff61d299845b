import json
import shutil

import numpy as np
import pytest
from transformers import AutoTokenizer, CanineTokenizer

from increlora_jax.errors import InputError
from increlora_jax.tasks.encoding import encode_texts
from increlora_jax.tasks.glue import load_glue
from increlora_jax.tasks.labelled_texts import Texts
from increlora_jax.weights.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(minilm_dir):
    return AutoTokenizer.from_pretrained(minilm_dir)


def split_of(first, second=None):
    return Texts(first, second, np.arange(len(first), dtype=np.int32))


def examples_of(encoded):
    ids, types = (encoded.ragged[name] for name in ("input_ids", "token_type_ids"))
    bounds = zip(ids.offsets[:-1], ids.offsets[1:], strict=True)
    return [
        (ids.values[low:high].tolist(), types.values[low:high].tolist()) for low, high in bounds
    ]


@pytest.mark.parametrize(("task", "folder"), [("sst2", "SST-2"), ("mrpc", "MRPC")])
@pytest.mark.parametrize("max_length", [15, 40, 512])
def test_real_examples_are_cut_as_the_tokenizer_cuts(data_dir, tokenizer, task, folder, max_length):
    split = load_glue(task, data_dir / "glue" / folder).dev["dev"]
    encoded = encode_texts(split, tokenizer, max_length)
    whole = tokenizer(split.first, split.second)["input_ids"]
    expected = tokenizer(split.first, split.second, truncation=True, max_length=max_length)
    assert examples_of(encoded) == list(
        zip(expected["input_ids"], expected["token_type_ids"], strict=True)
    )
    cut = sum(len(ids) > max_length for ids in whole)
    told = f"{cut} of {len(split)} examples cut to {max_length}"
    assert encoded.notes == ((told,) if cut else ())
    assert encoded.fixed["labels"] is split.labels


def test_pairs_of_all_lengths_are_cut_as_the_tokenizer_cuts(tokenizer):
    lengths = [(first, second) for first in range(9) for second in range(9)]
    split = split_of(
        ["a " * first for first, _ in lengths], ["b " * second for _, second in lengths]
    )
    for max_length in range(5, 13):
        expected = tokenizer(
            split.first, split.second, truncation="longest_first", max_length=max_length
        )
        assert examples_of(encode_texts(split, tokenizer, max_length)) == list(
            zip(expected["input_ids"], expected["token_type_ids"], strict=True)
        )


def test_a_tokenizer_that_cuts_from_the_left_is_obeyed(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings | {"truncation_side": "left"})
    )
    left, right = load_tokenizer(folder), load_tokenizer(tiny_model)
    words = ["good", "bad", "fine", "awful", "film", "plot", "very", "not", "the"]
    lengths = [(first, second) for first in range(9) for second in range(9)]
    firsts = [" ".join(words[:first]) for first, _ in lengths]
    seconds = [" ".join(words[:second]) for _, second in lengths]
    for second in (None, seconds):
        for max_length in range(5, 13):
            split = split_of(firsts, second)
            expected = left(firsts, second, truncation="longest_first", max_length=max_length)
            encoded = encode_texts(split, left, max_length)
            ids = [ids for ids, _ in examples_of(encoded)]
            assert ids == expected["input_ids"]
            is_cut = bool(encoded.notes)
            assert all(note.endswith(", from the left") for note in encoded.notes)
            assert is_cut == (
                examples_of(encoded) != examples_of(encode_texts(split, right, max_length))
            )


def test_pair_of_megabyte_texts_is_cut_and_counted(tokenizer):
    # The tokenizer's own truncation builds every pair of cut-off pieces here, and is killed.
    text = "ab cd " * 170_000
    encoded = encode_texts(split_of([text, "a"], [text, "b"]), tokenizer, 64)
    assert encoded.notes[0].startswith("1 of 2")
    assert encoded.lengths.tolist() == [64, 5]


def test_tokenizer_without_token_types_or_pad_token_gives_zeros(tokenizer, minilm_dir):
    plain = AutoTokenizer.from_pretrained(minilm_dir)
    plain.model_input_names = ["input_ids", "attention_mask"]
    plain.pad_token = None
    encoded = encode_texts(split_of(["a", "b c"], ["d", "e"]), plain, 5)
    ids, types = (encoded.ragged[name] for name in ("input_ids", "token_type_ids"))
    assert ids.fill == 0
    assert not types.values.any()
    typed = encode_texts(split_of(["a", "b c"], ["d", "e"]), tokenizer, 5)
    assert typed.ragged["token_type_ids"].values.any()
    np.testing.assert_array_equal(ids.values, typed.ragged["input_ids"].values)


def test_empty_text_is_special_tokens_alone(tokenizer):
    encoded = encode_texts(split_of([""]), tokenizer, 16)
    assert encoded.ragged["input_ids"].values.tolist() == [
        tokenizer.cls_token_id,
        tokenizer.sep_token_id,
    ]


def test_length_without_room_for_text_is_refused(tokenizer):
    encode_texts(split_of(["a"], ["b"]), tokenizer, 5)
    with pytest.raises(InputError, match="--max-seq-length 4 leaves no room for text: at least 5"):
        encode_texts(split_of(["a"], ["b"]), tokenizer, 4)
    with pytest.raises(InputError, match="at least 3"):
        encode_texts(split_of(["a"]), tokenizer, 2)


def test_slow_tokenizer_is_refused():
    with pytest.raises(InputError, match="CanineTokenizer is not a fast tokenizer"):
        encode_texts(split_of(["a"]), CanineTokenizer(), 16)
