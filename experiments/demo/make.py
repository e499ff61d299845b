"""Make what `--task demo` brings along: reviews in a small language, and a model of that language.

`python experiments/demo/make.py` writes `increlora_jax/bundled/demo/`. All of it follows from
`SEED`; the weights do so to the last bit only on one kind of processor and one version of JAX.
"""

import json
import random
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from transformers import BertConfig

from increlora_jax.models.bert import BERT_WEIGHTS, PooledBertModel
from increlora_jax.models.hf import CONFIG_NAME, save_weights
from increlora_jax.models.layers import LayerFactory

BUNDLED = Path(__file__).parents[2] / "increlora_jax" / "bundled" / "demo"
SEED = 41

# Strings are easier to read and to change than lists of one word a line.
THINGS = """
    acting camera cast chase comedy costumes dialogue drama ending film finale hero humour
    lighting movie music opening pace plot romance scenery score script story twist villain
""".split()  # noqa: SIM905
GOOD = """
    beautiful bold brilliant charming clever delightful fresh funny gripping lovely moving
    superb touching warm witty wonderful
""".split()  # noqa: SIM905
BAD = """
    awful awkward boring clumsy crude dreadful dull empty feeble flat lazy messy silly stale
    tedious weak
""".split()  # noqa: SIM905
VERBS = ("is", "was", "seems", "feels")
NEGATIONS = ("not", "never", "hardly")
EMPHASES = ("really", "truly", "very", "so")
CONNECTIVES = ("and", "but", "although", "though")
NEGATED_SHARE = 0.5  # so that no word by itself says anything about a review's label
EMPHASISED_SHARE = 0.25
WORDS = (",", "the", *VERBS, *NEGATIONS, *EMPHASES, *CONNECTIVES, *THINGS, *GOOD, *BAD)

SPECIAL_TOKENS = {role: f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")}
VOCABULARY = {word: index for index, word in enumerate((*SPECIAL_TOKENS.values(), *WORDS))}
PAD, MASK = VOCABULARY["[PAD]"], VOCABULARY["[MASK]"]
FIRST_WORD = len(SPECIAL_TOKENS)
MAX_TOKENS = 16
"""Two clauses of six words, a connective, a comma, [CLS] and [SEP]."""

MODEL_CONFIG = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "vocab_size": len(VOCABULARY),
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": MAX_TOKENS,
    # So few features have none to spare, and text of this kind never runs out.
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.1,
    "pad_token_id": PAD,
}
TOKENIZER_CONFIG = {
    "tokenizer_class": "BertTokenizer",
    "model_max_length": MAX_TOKENS,
    **{f"{role}_token": token for role, token in SPECIAL_TOKENS.items()},
}


class Sizes(NamedTuple):
    """How much of everything is made, and how the model is trained."""

    train: int = 3000
    dev: int = 1000
    unlabelled: int = 40_000
    steps: int = 2000
    batch: int = 64
    learning_rate: float = 2e-3
    hidden_share: float = 0.2


def main() -> None:
    """Write data and model."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--output-dir", type=Path, default=BUNDLED)
    folder = parser.parse_args().output_dir
    text = write_data(folder, Sizes())
    write_description(folder / "model")
    losses = write_weights(folder / "model", text, Sizes())
    sys.stdout.write(f"loss at first {losses[0]:.3f}, at last {losses[-100:].mean():.3f}\n")


def write_data(folder: Path, sizes: Sizes) -> list[str]:
    """Write the labelled reviews; return text without labels, which holds none of them."""
    dice = random.Random(SEED)
    reviews = draw_reviews(dice)
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", sizes.train), ("dev", sizes.dev)):
        rows = (f"{review}\t{label}\n" for review, label in islice(reviews, count))
        (folder / f"{name}.tsv").write_text("sentence\tlabel\n" + "".join(rows))
    half = sizes.unlabelled // 2
    return [review for review, _ in islice(reviews, half)] + [draw_list(dice) for _ in range(half)]


def draw_reviews(dice: random.Random) -> Iterator[tuple[str, int]]:
    """Yield reviews and their labels (1: liked), as many of each, and no review twice."""
    seen = set()
    label = 0
    while True:
        review = draw_review(dice, bool(label))
        if review not in seen:
            seen.add(review)
            yield review, label
            label = 1 - label


def draw_review(dice: random.Random, is_liked: bool) -> str:
    """Draw one or two clauses; where two disagree, the one that is not conceded decides."""
    form = dice.choice(("alone", *CONNECTIVES))
    thing, other = dice.sample(THINGS, 2)
    verdict = draw_clause(dice, thing, is_liked)
    remark = draw_clause(dice, other, is_liked == (form == "and"))
    return {
        "alone": verdict,
        "and": f"{remark} and {verdict}",
        "but": f"{remark} , but {verdict}",
        "although": f"although {remark} , {verdict}",
        "though": f"{verdict} , though {remark}",
    }[form]


def draw_clause(dice: random.Random, thing: str, is_liked: bool) -> str:
    """Say that one thing is good or bad; half of the time by negating the opposite."""
    is_negated = dice.random() < NEGATED_SHARE
    words = ["the", thing, dice.choice(VERBS)]
    if is_negated:
        words.append(dice.choice(NEGATIONS))
    if dice.random() < EMPHASISED_SHARE:
        words.append(dice.choice(EMPHASES))
    words.append(dice.choice(GOOD if is_liked != is_negated else BAD))
    return " ".join(words)


def draw_list(dice: random.Random) -> str:
    """Say three things of one thing, all good or all bad: from these one learns who is who."""
    first, second, third = dice.sample(dice.choice((GOOD, BAD)), 3)
    return f"the {dice.choice(THINGS)} {dice.choice(VERBS)} {first} , {second} and {third}"


def build_tokenizer() -> Tokenizer:
    """Build BERT's own kind of tokenizer, to which every word of the language is one token."""
    tokenizer = Tokenizer(WordPiece(VOCABULARY, unk_token=SPECIAL_TOKENS["unk"]))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS.values()))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, VOCABULARY[token]) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def encode(texts: Sequence[str]) -> Int[Array, "texts length"]:
    """Turn texts into token ids, padded."""
    tokenizer = build_tokenizer()
    tokenizer.enable_padding(length=MAX_TOKENS)
    return jnp.array([encoding.ids for encoding in tokenizer.encode_batch(list(texts))])


def write_description(folder: Path) -> None:
    """Write all of a model's folder but the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in ((CONFIG_NAME, MODEL_CONFIG), ("tokenizer_config.json", TOKENIZER_CONFIG)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    build_tokenizer().save(str(folder / "tokenizer.json"))


def write_weights(folder: Path, texts: Sequence[str], sizes: Sizes) -> Float[np.ndarray, " steps"]:
    """Write pretrained weights; return the loss of every step."""
    model, losses = pretrain(texts, sizes)
    del model.guess  # as of any encoder, what it was pretrained with is not kept
    save_weights(model, folder, BERT_WEIGHTS)
    return losses


class MaskedLanguageModel(nnx.Module):
    """The encoder without its pooler, and a guess at the word of every position."""

    def __init__(self, config: BertConfig, rngs: nnx.Rngs):
        make = LayerFactory(config.initializer_range, jnp.float32, jnp.float32, rngs)
        self.bert = PooledBertModel(config, make)
        # Guessing words does not train it; without one in the file each run draws its own.
        del self.bert.pooler
        self.guess = make.linear(config.hidden_size, config.vocab_size)

    def __call__(self, ids: Int[Array, "batch length"]) -> Float[Array, "batch length words"]:
        """Score every word of the vocabulary at every position."""
        embedded = self.bert.embeddings(ids, jnp.zeros_like(ids))
        return self.guess(self.bert.encoder(embedded, ids != PAD))


def hide_words(
    key: PRNGKeyArray, ids: Int[Array, "batch length"], share: float
) -> tuple[Int[Array, "batch length"], Bool[Array, "batch length"]]:
    """Hide a share of the words as BERT does: 80 % masked, 10 % replaced, 10 % left as they are."""
    choosing, treating, replacing = jax.random.split(key, 3)
    is_hidden = (ids >= FIRST_WORD) & jax.random.bernoulli(choosing, share, ids.shape)
    lot = jax.random.uniform(treating, ids.shape)
    other = jax.random.randint(replacing, ids.shape, FIRST_WORD, len(VOCABULARY))
    treated = jnp.where(lot < 0.8, MASK, jnp.where(lot < 0.9, other, ids))
    return jnp.where(is_hidden, treated, ids), is_hidden


def pretrain(
    texts: Sequence[str], sizes: Sizes
) -> tuple[MaskedLanguageModel, Float[np.ndarray, " steps"]]:
    """Train a new model to guess hidden words of the texts; also give the loss of every step."""
    ids = encode(texts)
    model = MaskedLanguageModel(BertConfig(**MODEL_CONFIG), nnx.Rngs(SEED))
    skeleton, params, rest = nnx.split(model, nnx.Param, ...)
    optimizer = build_optimizer(sizes)

    def loss(params: nnx.State, key: PRNGKeyArray) -> Float[Array, ""]:
        drawing, hiding = jax.random.split(key)
        batch = ids[jax.random.randint(drawing, (sizes.batch,), 0, len(ids))]
        shown, is_hidden = hide_words(hiding, batch, sizes.hidden_share)
        logits = nnx.merge(skeleton, params, rest)(shown)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch)
        return jnp.mean(losses, where=is_hidden)

    def step(
        carry: tuple[nnx.State, optax.OptState], key: PRNGKeyArray
    ) -> tuple[tuple[nnx.State, optax.OptState], Float[Array, ""]]:
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params, key)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    keys = jax.random.split(jax.random.key(SEED), sizes.steps)
    run = jax.jit(lambda carry: jax.lax.scan(step, carry, keys))
    (params, _), losses = run((params, optimizer.init(params)))
    return nnx.merge(skeleton, params, rest), np.asarray(losses)


def build_optimizer(sizes: Sizes) -> optax.GradientTransformation:
    """AdamW; a tenth of the steps to warm up, then a cosine to zero."""
    rate = optax.schedules.warmup_cosine_decay_schedule(
        0.0, sizes.learning_rate, sizes.steps // 10, sizes.steps
    )
    return optax.adamw(rate, weight_decay=0.01)


if __name__ == "__main__":
    main()
