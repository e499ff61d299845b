"""The bundled demo: what its reviews mean, and that the script in experiments makes just that."""

import importlib.util
import re
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from tokenizers import Tokenizer

from increlora_jax.models.registry import load_model, load_tokenizer
from increlora_jax.recipes import DEMO
from increlora_jax.tasks.demo import load_demo
from increlora_jax.tasks.encoding import encode

WEIGHTS = "model.safetensors"
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
def made(make, tmp_path_factory):
    """A folder made anew but for the weights, and the text for those."""
    folder = tmp_path_factory.mktemp("made")
    text = make.write_data(folder, make.Sizes())
    make.write_description(folder / "model")
    return folder, text


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
    assert data.notes == ()


def test_words_by_themselves_say_nothing(data):
    counts = CountVectorizer(token_pattern=r"\S+")
    train, dev = data.train, data.dev["dev"]
    linear = LogisticRegression().fit(counts.fit_transform(train.first), train.labels)
    # Chance is 0.5 with a standard deviation of 0.016.
    assert linear.score(counts.transform(dev.first), dev.labels) < 0.56


def test_every_word_is_one_token_and_nothing_is_cut(data):
    tokenizer = load_tokenizer(Path(DEMO["model"]))
    for split in (data.train, data.dev["dev"]):
        encoded = encode(split, tokenizer, DEMO["max_seq_length"])
        assert encoded.n_truncated == 0
        assert encoded.lengths.tolist() == [len(text.split()) + 2 for text in split.first]
        assert tokenizer.unk_token_id not in encoded.token_ids


@pytest.mark.parametrize(
    "name", ["train.tsv", "dev.tsv", "model/config.json", "model/tokenizer_config.json"]
)
def test_the_script_writes_the_bundled_bytes(make, made, name):
    assert (made[0] / name).read_bytes() == (make.BUNDLED / name).read_bytes()


def test_the_script_builds_the_bundled_tokenizer(make):
    bundled = Tokenizer.from_file(str(make.BUNDLED / "model" / "tokenizer.json"))
    # Read and written again, since releases of the library spell the same tokenizer differently.
    assert bundled.to_str() == Tokenizer.from_str(make.build_tokenizer().to_str()).to_str()


def test_the_model_was_shown_no_labelled_review(made, data):
    assert len(made[1]) == 40_000
    assert not set(made[1]) & {*data.train.first, *data.dev["dev"].first}


def test_pretraining_learns_and_writes_a_loadable_encoder(make, made):
    folder, text = made
    losses = make.write_weights(folder / "model", text, make.Sizes(steps=100))
    assert np.mean(losses[-10:]) < 0.7 * losses[0]
    shapes, bundled = (
        {key: value.shape for key, value in load_file(where / "model" / WEIGHTS).items()}
        for where in (folder, make.BUNDLED)
    )
    assert shapes == bundled
    _, report = load_model(folder / "model", num_labels=2)
    assert all(re.match(r"bert\.pooler|classifier", path) for path in report.new_parameters)
    assert report.ignored_keys == ()


def test_the_bundled_model_knows_good_from_bad(make):
    table = load_file(make.BUNDLED / "model" / WEIGHTS)["bert.embeddings.word_embeddings.weight"]
    good, bad = (
        table[[make.VOCABULARY[word] for word in words]] for words in (make.GOOD, make.BAD)
    )
    axis = good.mean(0) - bad.mean(0)
    middle = (good.mean(0) + bad.mean(0)) / 2
    assert np.all((good - middle) @ axis > 0)
    assert np.all((bad - middle) @ axis < 0)


def test_hidden_words_are_those_of_the_text(make):
    ids = make.encode(["the film is dull , but the music was not really weak"] * 500)
    shown, is_hidden = make.hide_words(jax.random.key(0), ids, 0.2)
    is_word = np.asarray(ids) >= make.FIRST_WORD
    assert not np.any(is_hidden & ~is_word)
    assert np.array_equal(np.where(is_hidden, ids, shown), ids)
    assert np.mean(np.asarray(is_hidden)[is_word]) == pytest.approx(0.2, abs=0.02)
    assert np.mean(np.asarray(shown)[is_hidden] == make.MASK) == pytest.approx(0.8, abs=0.04)


@pytest.mark.slow
def test_the_script_trains_the_bundled_weights(make, tmp_path):
    text = make.write_data(tmp_path, make.Sizes())
    make.write_weights(tmp_path / "model", text, make.Sizes())
    made, bundled = (load_file(f / "model" / WEIGHTS) for f in (tmp_path, make.BUNDLED))
    for key, value in bundled.items():
        # Another instruction set rounds otherwise: 0.01 at most was seen, of weights of order 1.
        np.testing.assert_allclose(made[key], value, atol=0.05, err_msg=key)
