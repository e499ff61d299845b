"""The bundled demo: what its reviews mean, and that the script in experiments makes just that."""

import importlib.util
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from increlora_jax.run.recipes import DEMO
from increlora_jax.tasks.demo import load_demo
from increlora_jax.tasks.encoding import encode_texts
from increlora_jax.weights.tensor_files import WEIGHTS_NAME
from increlora_jax.weights.tokenizer import load_tokenizer

CONCESSIONS = ("although", "though")


@pytest.fixture(scope="module")
def make():
    """The script, as a module."""
    path = Path(__file__).parents[2] / "experiments" / "demo" / "make.py"
    spec = importlib.util.spec_from_file_location("make_demo", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data():
    return load_demo()


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(Path(DEMO["model"]))


def judge(make, review):
    """Tell whether a review is favourable, from its words: the grammar read backwards."""
    clauses = [clause.split() for clause in review.replace(" and ", " , ").split(" , ")]
    decisive = [words for words in clauses if words[0] not in CONCESSIONS][-1]
    is_negated = not set(decisive).isdisjoint(make.NEGATIONS)
    return (decisive[-1] in make.GOOD) != is_negated


def test_every_label_is_what_the_review_says(make, data):
    for split in (data.train, data.dev["dev"]):
        assert [judge(make, review) for review in split.first] == split.labels.astype(bool).tolist()
    assert judge(make, "although the film is dull , the music was not very weak")
    assert not judge(make, "the film is not so charming , though the music was warm")


def test_splits_are_balanced_and_share_no_review(data):
    train, dev = data.train, data.dev["dev"]
    assert (len(train), len(dev)) == (3000, 1000)
    assert Counter(train.labels.tolist()) == {0: 1500, 1: 1500}
    assert Counter(dev.labels.tolist()) == {0: 500, 1: 500}
    assert len(set(train.first) | set(dev.first)) == 4000
    assert data.notes == tuple(
        f"{name}.tsv: {2 * half} rows of {2 * half + 1} lines; labels '0' {half}, '1' {half}"
        for name, half in (("train", 1500), ("dev", 500))
    )


def test_words_by_themselves_say_nothing(data):
    counts = CountVectorizer(token_pattern=r"\S+")
    train, dev = data.train, data.dev["dev"]
    linear = LogisticRegression().fit(counts.fit_transform(train.first), train.labels)
    # Chance is 0.5 with a standard deviation of 0.016.
    assert linear.score(counts.transform(dev.first), dev.labels) < 0.56


def test_every_word_is_one_token_and_nothing_is_cut(data, tokenizer):
    for split in (data.train, data.dev["dev"]):
        encoded = encode_texts(split, tokenizer, DEMO["max_seq_length"])
        assert encoded.notes == ()
        assert encoded.lengths.tolist() == [len(text.split()) + 2 for text in split.first]
        assert tokenizer.unk_token_id not in encoded.ragged["input_ids"].values


@pytest.mark.parametrize("name", ["train.tsv", "dev.tsv"])
def test_the_script_writes_the_bundled_bytes(make, tmp_path, name):
    make.write_data(tmp_path)
    assert (tmp_path / name).read_bytes() == (make.BUNDLED / name).read_bytes()


def test_to_the_model_every_adjective_is_most_like_those_of_its_kind(make, tokenizer):
    table = load_file(Path(DEMO["model"]) / WEIGHTS_NAME)["bert.embeddings.word_embeddings.weight"]
    ids = tokenizer.convert_tokens_to_ids([*make.GOOD, *make.BAD])
    vectors = table[ids].astype(np.float32)
    likeness = vectors @ vectors.T
    np.fill_diagonal(likeness, np.nan)  # every word is like itself, whatever it means
    is_good = np.arange(len(ids)) < len(make.GOOD)
    to_good, to_bad = (np.nanmean(likeness[:, kind], axis=1) for kind in (is_good, ~is_good))
    assert np.array_equal(to_good > to_bad, is_good)
