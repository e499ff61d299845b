"""Make the tiny encoder of the package: a WordPiece vocabulary and a BERT.

`python experiments/pretrain_tiny/make.py --data-dir DIR` reads 50,000 film reviews and GLUE's
training sentences in DIR, and writes `increlora_jax/bundled/tiny_encoder/`.
"""

import gzip
import json
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray
from scipy.sparse.linalg import eigsh
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import WordPiece
from transformers import BertConfig

from increlora_jax.models.bert import BERT_WEIGHTS, BertForMaskedLM
from increlora_jax.weights.folder import CONFIG_NAME, save_weights

BUNDLED = Path(__file__).parents[2] / "increlora_jax" / "bundled" / "tiny_encoder"
SEED = 41
GLUE_TEXTS = {
    "SST-2": ("sentence",),
    "MRPC": ("sentence1", "sentence2"),
    "RTE": ("sentence1", "sentence2"),
    "STS-B": ("sentence1", "sentence2"),
}

SPECIAL_TOKENS = {role: f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")}
PAD, UNKNOWN, CLS, SEP, MASK = range(len(SPECIAL_TOKENS))
FIRST_WORD = len(SPECIAL_TOKENS)
LENGTH = 64

MODEL_CONFIG = {
    "architectures": ["BertForMaskedLM"],
    "model_type": "bert",
    "vocab_size": 6000,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "max_position_embeddings": 128,
    # One pass over the text is too little to memorize it.
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.05,
    "pad_token_id": PAD,
}
TOKENIZER_CONFIG = {
    "tokenizer_class": "BertTokenizer",
    "model_max_length": 128,
    **{f"{role}_token": token for role, token in SPECIAL_TOKENS.items()},
}


class Sizes(NamedTuple):
    """Sizes of the model and its training.

    `window` is the distance of words that count as company; `likeness` scales the initial attention
    to similar words.
    """

    steps: int = 2000
    batch: int = 32
    learning_rate: float = 3e-3
    hidden_share: float = 0.15
    window: int = 4
    likeness: float = 0.7
    report_every: int = 50


Carry = tuple[nnx.State, optax.OptState]


def main() -> None:
    """Write tokenizer and configuration, then the weights each time they improve."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--output-dir", type=Path, default=BUNDLED)
    parser.add_argument("--steps", type=int, default=Sizes().steps)
    words = parser.parse_args()
    sizes = Sizes(steps=words.steps)
    texts = read_texts(words.data_dir)
    tokenizer = train_tokenizer(texts, MODEL_CONFIG["vocab_size"])
    write_description(words.output_dir, tokenizer)
    ids = pack(tokenizer, texts, LENGTH)
    begun = begin(ids, sizes)
    write_weights(words.output_dir, begun)
    for report, (model, loss) in enumerate(pretrain(begun, ids, sizes), 1):
        write_weights(words.output_dir, model)
        sys.stdout.write(f"step {report * sizes.report_every}: loss {loss:.3f}\n")
        sys.stdout.flush()


def read_texts(data_dir: Path) -> list[str]:
    """Read the reviews and GLUE's training sentences, without those of dev sets."""
    with gzip.open(data_dir / "text" / "reviews.txt.gz", "rt", encoding="utf-8") as lines:
        reviews = [line.rstrip("\n") for line in lines]
    dev, train = (
        [text for task in GLUE_TEXTS for text in read_sentences(data_dir, task, split)]
        for split in ("dev", "train")
    )
    seen = set(dev)
    return [text for text in (*reviews, *train) if text not in seen]


def read_sentences(data_dir: Path, task: str, split: str) -> Iterator[str]:
    """Yield one split's sentences, without labels."""
    text = (data_dir / "glue" / task / f"{split}.tsv").read_text(encoding="utf-8")
    header, *rows = (line.split("\t") for line in text.split("\n") if line)
    columns = [header.index(name) for name in GLUE_TEXTS[task]]
    yield from (row[column] for row in rows for column in columns)


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """Train a tokenizer like BERT's, lower case."""
    tokenizer = Tokenizer(WordPiece(unk_token=SPECIAL_TOKENS["unk"]))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        limit_alphabet=100,
        special_tokens=list(SPECIAL_TOKENS.values()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    return tokenizer


def pack(tokenizer: Tokenizer, texts: Sequence[str], length: int) -> Int[np.ndarray, "rows length"]:
    """Pack all texts end to end, [SEP] after each, and cut rows that begin with [CLS]."""
    encodings = tokenizer.encode_batch_fast(list(texts))
    stream = np.concatenate([np.array(one.ids[1:], np.uint16) for one in encodings])
    rows = stream[: len(stream) // (length - 1) * (length - 1)].reshape(-1, length - 1)
    return np.pad(rows, ((0, 0), (1, 0)), constant_values=CLS)


def place_words(
    ids: Int[np.ndarray, "rows length"], features: int, window: int
) -> Float[np.ndarray, "words features"]:
    """Return word vectors that are near for words of the same company (Levy and Goldberg, 2014).

    The vectors are the leading eigenvectors of the positive pointwise mutual information of words
    at most `window` apart. Training thus starts with similar words near each other.
    """
    words = MODEL_CONFIG["vocab_size"]
    counts = np.zeros(words * words)
    for offset in range(1, window + 1):
        pairs = ids[:, :-offset].astype(np.int64) * words + ids[:, offset:]
        counts += np.bincount(pairs.ravel(), minlength=words * words)
    counts = counts.reshape(words, words)
    counts += counts.T
    # Otherwise rare words would count for too much; 0.75 is the authors' exponent.
    company = counts.sum(0) ** 0.75
    expected = np.outer(counts.sum(1), company / company.sum())
    ratio = np.divide(counts, expected, out=np.ones_like(counts), where=expected > 0)
    information = np.log(np.maximum(ratio, 1.0))
    values, vectors = eigsh((information + information.T) / 2, k=features, v0=np.ones(words))
    return vectors * np.sqrt(np.abs(values))


def place_positions(length: int, features: int) -> Float[np.ndarray, "length features"]:
    """Place positions on circles, with neighbours near each other (Vaswani et al., 2017).

    Sine and cosine are adjacent: the first attention heads get the fast circles, which separate
    neighbours, and the last heads the slow ones.
    """
    speeds = 10_000.0 ** (-np.arange(features // 2) / (features // 2))
    angles = np.arange(length)[:, None] * speeds
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(length, features)


def begin(ids: Int[np.ndarray, "rows length"], sizes: Sizes) -> BertForMaskedLM:
    """Create a model that starts with word frequencies, word vectors and positions."""
    config = BertConfig(**MODEL_CONFIG)
    model = BertForMaskedLM(config, rngs=nnx.Rngs(SEED))
    words = place_words(ids, config.hidden_size, sizes.window)
    words *= config.initializer_range / np.sqrt(np.mean(np.square(words)))
    positions = place_positions(config.max_position_embeddings, config.hidden_size)
    embeddings = model.bert.embeddings
    embeddings.word_embeddings.embedding[...] = jnp.asarray(words, jnp.float32)
    embeddings.position_embeddings.embedding[...] = jnp.asarray(
        2 * config.initializer_range * positions, jnp.float32
    )
    for layer in model.bert.encoder.layer:
        attention = layer.attention.self
        # Similar words attend to each other, and so do neighbours.
        for dense in (attention.query, attention.key):
            dense.kernel[...] += sizes.likeness * jnp.eye(config.hidden_size)
    counts = np.bincount(ids.ravel(), minlength=config.vocab_size)
    counts[:FIRST_WORD] = 0
    frequencies = (counts + 1.0) / counts.sum()
    model.cls.predictions.bias[...] = jnp.asarray(np.log(frequencies), jnp.float32)
    return model


def hide_words(
    key: PRNGKeyArray, ids: Int[Array, "batch length"], count: int
) -> tuple[Int[Array, "batch length"], Int[Array, "batch count"]]:
    """Hide `count` words a row as BERT does: 80 % masked, 10 % replaced, 10 % kept.

    Returns:
        The visible ids, and the positions of the hidden words.
    """
    choosing, treating, replacing = jax.random.split(key, 3)
    is_word = ids >= FIRST_WORD
    _, places = jax.lax.top_k(
        jnp.where(is_word, jax.random.uniform(choosing, ids.shape), -1), count
    )
    words = jnp.take_along_axis(ids, places, axis=1)
    lot = jax.random.uniform(treating, places.shape)
    other = jax.random.randint(replacing, places.shape, FIRST_WORD, MODEL_CONFIG["vocab_size"])
    treated = jnp.where(lot < 0.8, MASK, jnp.where(lot < 0.9, other, words))
    rows = jnp.arange(len(ids))[:, None]
    return ids.at[rows, places].set(treated), places


def pretrain(
    model: BertForMaskedLM, ids: Int[np.ndarray, "rows length"], sizes: Sizes
) -> Iterator[tuple[BertForMaskedLM, float]]:
    """Train the model on hidden words; yield it and the mean loss at intervals."""
    skeleton, params, rest = nnx.split(model, nnx.Param, ...)
    optimizer = build_optimizer(sizes)
    count = round(sizes.hidden_share * ids.shape[1])

    def loss(
        params: nnx.State, ids: Int[Array, "batch length"], key: PRNGKeyArray
    ) -> Float[Array, ""]:
        shown, places = hide_words(key, ids, count)
        model = nnx.merge(skeleton, params, rest)
        hidden = model.bert(shown, jnp.ones_like(shown), jnp.zeros_like(shown))
        # Only at these positions: scores of a whole vocabulary cost as much as a layer.
        hidden = jnp.take_along_axis(hidden, places[..., None], axis=1)
        logits = model.cls.predictions(hidden, model.bert.embeddings.word_embeddings)
        words = jnp.take_along_axis(ids, places, axis=1)
        return optax.softmax_cross_entropy_with_integer_labels(logits, words).mean()

    def step(carry: Carry, inputs: tuple[Array, PRNGKeyArray]) -> tuple[Carry, Float[Array, ""]]:
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params, *inputs)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    run = jax.jit(lambda carry, inputs: jax.lax.scan(step, carry, inputs))
    carry = params, optimizer.init(params)
    for inputs in draw_batches(ids, sizes):
        carry, losses = run(carry, inputs)
        yield nnx.merge(skeleton, carry[0], rest), float(losses.mean())


def draw_batches(
    ids: Int[np.ndarray, "rows length"], sizes: Sizes
) -> Iterator[tuple[Int[np.ndarray, "steps batch length"], PRNGKeyArray]]:
    """Yield the batches of the steps up to each report, with a key for every step."""
    order = np.random.default_rng(SEED).permutation(len(ids))
    keys = jax.random.split(jax.random.key(SEED), sizes.steps)
    for start in range(0, sizes.steps, sizes.report_every):
        steps = np.arange(start, min(start + sizes.report_every, sizes.steps))
        rows = steps[:, None] * sizes.batch + np.arange(sizes.batch)
        yield ids[order[rows % len(ids)]].astype(np.int32), keys[steps]


def build_optimizer(sizes: Sizes) -> optax.GradientTransformation:
    """Return AdamW with a warmup over a twentieth of the steps, then a cosine to zero."""
    rate = optax.schedules.warmup_cosine_decay_schedule(
        0.0, sizes.learning_rate, sizes.steps // 20, sizes.steps
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.98, weight_decay=0.01)
    )


def write_description(folder: Path, tokenizer: Tokenizer) -> None:
    """Write the files of a model's folder, except the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in ((CONFIG_NAME, MODEL_CONFIG), ("tokenizer_config.json", TOKENIZER_CONFIG)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    tokenizer.save(str(folder / "tokenizer.json"))


def write_weights(folder: Path, model: BertForMaskedLM) -> None:
    """Write the weights in half precision, which matches their accuracy."""
    skeleton, params, rest = nnx.split(model, nnx.Param, ...)
    halves = jax.tree.map(lambda weight: weight.astype(jnp.float16), params)
    save_weights(nnx.merge(skeleton, halves, rest), folder, BERT_WEIGHTS)


if __name__ == "__main__":
    main()
