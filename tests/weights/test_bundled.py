"""The bundled encoder: small, loadable here and in PyTorch, and it has learnt something."""

import gzip
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

import increlora_jax as il
from increlora_jax.models.registry import load_model
from increlora_jax.weights.bundled import TINY_ENCODER
from increlora_jax.weights.tensor_files import WEIGHTS_NAME
from increlora_jax.weights.tokenizer import load_tokenizer

MEGABYTE = 10**6

# Written for this test, so that no text the model was trained on can be among them.
SENTENCES = (
    "This is one of the best films I have ever seen.",
    "I would not recommend this movie to anyone, because it was a waste of time.",
    "The acting is good, but the story is boring and the ending makes no sense.",
    "She plays a young woman who falls in love with a man from another world.",
    "At the end of the film, there is a scene that will make you laugh out loud.",
    "If you are a fan of the original, you will be disappointed by the new one.",
    "The president said on Friday that the government will not change the law.",
    "It is based on a true story and set in New York during the war.",
    "As a matter of fact, I do not know what the director was thinking.",
    "The special effects are better than in most of the movies of that time.",
)


@pytest.fixture(scope="module")
def make():
    """The script, as a module."""
    path = Path(__file__).parents[2] / "experiments" / "pretrain_tiny" / "make.py"
    spec = importlib.util.spec_from_file_location("make_tiny_encoder", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(TINY_ENCODER)


@pytest.fixture(scope="module")
def guess_words():
    """The encoder with its masked-LM head, compiled."""
    model, report = load_model(TINY_ENCODER, head="masked_lm")
    assert report.new_parameters == report.replaced_keys == report.ignored_keys == ()
    model.eval()
    return nnx.jit(model)


def hide_each(tokenizer, sentences):
    """One row for every token of the sentences, in which that token is hidden; and the tokens."""
    rows, hidden = [], []
    for ids in tokenizer(list(sentences))["input_ids"]:
        for place in range(1, len(ids) - 1):
            rows.append([*ids[:place], tokenizer.mask_token_id, *ids[place + 1 :]])
            hidden.append(ids[place])
    padded = tokenizer.pad({"input_ids": rows}, return_tensors="np")
    is_hidden = padded["input_ids"] == tokenizer.mask_token_id
    return padded["input_ids"], padded["attention_mask"], is_hidden, np.array(hidden)


def test_it_is_small():
    assert sum(file.stat().st_size for file in TINY_ENCODER.iterdir()) <= 6 * MEGABYTE


def test_its_path_is_a_public_name():
    assert il.TINY_ENCODER == TINY_ENCODER


def test_it_loads_as_a_classifier_whose_pooler_and_head_are_new():
    _, report = load_model(TINY_ENCODER, num_labels=2)
    assert {path.split(".")[-3] for path in report.new_parameters if "pooler" in path} == {"pooler"}
    assert all("pooler" in path or "classifier" in path for path in report.new_parameters)
    assert all(key.startswith("cls.") for key in report.ignored_keys)


def test_pytorch_computes_the_same_from_it(tokenizer, guess_words):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForMaskedLM

    reference = AutoModelForMaskedLM.from_pretrained(
        TINY_ENCODER, dtype=torch.float32, attn_implementation="eager"
    )
    batch = tokenizer(list(SENTENCES), padding=True, return_tensors="np")
    with torch.no_grad():
        expected = reference(**{k: torch.tensor(v) for k, v in batch.items()}).logits.numpy()
    got = guess_words(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
    is_token = batch["attention_mask"] > 0
    scale = np.abs(expected).max()
    np.testing.assert_allclose(got[is_token], expected[is_token], atol=1e-5 * scale)


def test_it_guesses_hidden_words_better_than_the_commonest_word_would(tokenizer, guess_words):
    ids, mask, is_hidden, hidden = hide_each(tokenizer, SENTENCES)
    guesses = np.argmax(guess_words(ids, mask, np.zeros_like(ids))[is_hidden], axis=-1)
    accuracy = np.mean(guesses == hidden)
    # The best that guessing one and the same word everywhere can reach in these very sentences.
    constant = np.bincount(hidden).max() / len(hidden)
    assert accuracy > 2 * constant


def test_words_of_a_kind_lie_together(tokenizer):
    table = load_file(TINY_ENCODER / WEIGHTS_NAME)["bert.embeddings.word_embeddings.weight"]
    table = table.astype(np.float32)
    table /= np.linalg.norm(table, axis=1, keepdims=True) + 1e-6

    def alike(one, other):
        one, other = tokenizer.convert_tokens_to_ids([one, other])
        return table[one] @ table[other]

    assert alike("great", "excellent") > alike("great", "monday")
    assert alike("boring", "dull") > alike("boring", "police")
    assert alike("director", "writer") > alike("director", "very")


def write_rows(file, *rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")


def test_no_sentence_of_a_dev_set_and_no_label_is_read(make, tmp_path):
    (tmp_path / "text").mkdir()
    with gzip.open(tmp_path / "text" / "reviews.txt.gz", "wt", encoding="utf-8") as lines:
        lines.write("a review\nasked of mrpc\n")
    for task, columns in make.GLUE_TEXTS.items():
        asked, told = f"asked of {task.lower()}", f"told by {task.lower()}"
        header = (*columns, "label")
        folder = tmp_path / "glue" / task
        write_rows(folder / "dev.tsv", header, (*[asked] * len(columns), "1"))
        write_rows(folder / "train.tsv", header, (*[asked, told][-len(columns) :], "0"))
    expected = ["a review", "told by sst-2", "told by mrpc", "told by rte", "told by sts-b"]
    assert make.read_texts(tmp_path) == expected


def test_text_is_packed_without_loss(make):
    texts = ["the film is good", "a film", "is the film a good film ?"] * 5
    tokenizer = make.train_tokenizer(texts, vocab_size=60)
    rows = make.pack(tokenizer, texts, length=8)
    assert np.all(rows[:, 0] == make.CLS)
    words = tokenizer.decode(rows[:, 1:].ravel(), skip_special_tokens=False)
    whole = " [SEP] ".join(texts) + " [SEP]"
    assert whole.startswith(words)
    assert len(whole.removeprefix(words).split()) < 7


def test_hidden_words_are_those_of_the_text(make):
    ids = np.random.default_rng(0).integers(make.FIRST_WORD, 6000, (500, 40))
    ids[:, 0], ids[:, 20] = make.CLS, make.SEP
    shown, places = make.hide_words(jax.random.key(0), jnp.asarray(ids), count=6)
    assert all(len(set(row)) == 6 for row in np.asarray(places).tolist())
    is_hidden = np.zeros(ids.shape, bool)
    np.put_along_axis(is_hidden, np.asarray(places), True, axis=1)
    assert not is_hidden[:, [0, 20]].any()
    assert np.array_equal(np.where(is_hidden, ids, shown), ids)
    # 3,000 words: a standard deviation of 0.007 and of 0.005.
    assert np.mean(shown[is_hidden] == make.MASK) == pytest.approx(0.8, abs=0.03)
    assert np.mean(shown[is_hidden] == ids[is_hidden]) == pytest.approx(0.1, abs=0.025)


def test_words_that_keep_the_same_company_are_placed_together(make, monkeypatch):
    # Words 0 and 1 stand among 4 to 7, words 2 and 3 among 8 to 11.
    monkeypatch.setitem(make.MODEL_CONFIG, "vocab_size", 12)
    draw = np.random.default_rng(0)
    subject = draw.integers(0, 4, 4000)
    others = 4 + 4 * (subject // 2)[:, None] + draw.integers(0, 4, (4000, 2))
    rows = np.stack([others[:, 0], subject, others[:, 1]], axis=1)
    vectors = make.place_words(rows, features=2, window=2)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    alike = vectors @ vectors.T
    assert min(alike[0, 1], alike[2, 3]) > 0.9
    assert np.abs(alike[:2, 2:4]).max() < 0.5


def test_pretraining_lowers_the_loss(make, monkeypatch):
    monkeypatch.setitem(make.MODEL_CONFIG, "vocab_size", 40)
    monkeypatch.setitem(make.MODEL_CONFIG, "hidden_size", 32)
    # After every word comes the next one, so that each can be guessed from its neighbours.
    start = np.arange(64)[:, None]
    ids = make.FIRST_WORD + (start + np.arange(16)) % (40 - make.FIRST_WORD)
    sizes = make.Sizes(steps=400, batch=16, learning_rate=3e-3, report_every=100)
    losses = [loss for _, loss in make.pretrain(make.begin(ids, sizes), ids, sizes)]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.slow
def test_the_script_learns_the_bundled_vocabulary(make, data_dir, tokenizer):
    made = make.train_tokenizer(make.read_texts(data_dir), make.MODEL_CONFIG["vocab_size"])
    # The trainer breaks ties between equally frequent pieces by chance.
    assert len(made.get_vocab().keys() & tokenizer.get_vocab().keys()) >= 0.99 * len(tokenizer)


@pytest.mark.slow
def test_it_guesses_words_of_text_it_has_not_seen(data_dir, tokenizer, guess_words):
    lines = (data_dir / "glue" / "SST-2" / "dev.tsv").read_text(encoding="utf-8").split("\n")
    ids, mask, is_hidden, hidden = hide_each(tokenizer, [x.split("\t")[0] for x in lines[1:101]])
    guesses = np.argmax(guess_words(ids, mask, np.zeros_like(ids))[is_hidden], axis=-1)
    assert np.mean(guesses == hidden) > 2 * np.bincount(hidden).max() / len(hidden)
