"""A kind of task of somebody else's: find the word \"good\" in a text, judged by the distance."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import optax

from increlora_jax.tasks.classification import MODEL_INPUTS, count_tokens
from increlora_jax.tasks.encoding import token_fields
from increlora_jax.tasks.kind import Encoded, Kind, Reader, TaskData, smaller_is_better

WORDS = ("film", "plot", "very", "not", "the", "a")


@dataclass(frozen=True, eq=False)
class Sentences:
    """Texts with the place of the word to find, counted in words."""

    texts: list[str]
    places: np.ndarray
    source: str = "drawn"
    num_lines: int | None = None
    is_labelled: bool = True

    def __len__(self):
        return len(self.texts)

    def feed(self, digest):
        digest.update("\n".join(self.texts).encode())

    def inputs(self):
        return self.texts


def draw(seed, rows=64):
    random = np.random.default_rng(seed)
    places = random.integers(0, 6, rows)
    texts = [list(random.choice(WORDS, 6)) for _ in range(rows)]
    for text, place in zip(texts, places, strict=True):
        text[place] = "good"
    return Sentences([" ".join(text) for text in texts], places)


def encode(split, tokenizer, max_length, name=""):
    ids = [
        tokenizer(text, truncation=True, max_length=max_length)["input_ids"] for text in split.texts
    ]
    joined = np.concatenate(ids).astype(np.int32)
    lengths = np.array([len(row) for row in ids])
    fields = token_fields(joined, np.zeros_like(joined), lengths, tokenizer)
    return Encoded(fields, {"place": split.places.astype(np.int32) + 1})  # after [CLS]


def scores_of(model, batch):
    starts, _ = model(*(batch[name] for name in MODEL_INPUTS))
    return jnp.where(batch["attention_mask"] > 0, starts, -1e30)


def loss(model, batch):
    losses = optax.softmax_cross_entropy_with_integer_labels(
        scores_of(model, batch), batch["place"]
    )
    return jnp.sum(losses * batch["weight"]), jnp.sum(batch["weight"])


def predict(model, batch):
    return {"place": jnp.argmax(scores_of(model, batch), axis=-1) - 1}


def score(predictions, encoded, splits):
    (name,) = splits
    errors = np.abs(predictions[name]["place"] - splits[name].places)
    return {"distance": float(np.mean(errors))}


def examine(predictions, encoded, split):
    return {"rows": len(split)}


def make_kind(config):
    return Kind(
        task="toy",
        dev_splits=("dev",),
        head="question_answering",
        head_options={},
        loading={},
        labels=None,
        saved={},
        find=lambda folder, split: folder / split,
        read=lambda path, config: (draw(1), ()),
        load_own=lambda names: ({name: draw(1) for name in names}, ()),
        encode=encode,
        pack=None,
        loss=loss,
        predict=predict,
        score=score,
        examine=examine,
        count=lambda split: {"rows": len(split)},
        metrics=("distance",),
        is_better=smaller_is_better,
        count_tokens=count_tokens,
    )


def load(config):
    return TaskData(make_kind(config), draw(0, 256), {"dev": draw(1)})


TOY = Reader(("toy",), load, lambda saved, config: make_kind(config))
