"""Predictions of a trained model on whole splits, and real examples to compare outputs on."""

from collections.abc import Mapping

from increlora_jax.errors import InputError
from increlora_jax.interop.proof import EXAMPLES, cut_batches
from increlora_jax.nn.skeleton import Parts
from increlora_jax.run.trained import Trained
from increlora_jax.runtime.console import counted
from increlora_jax.runtime.preemption import Stop
from increlora_jax.tasks.batching import evaluation_batches, length_buckets
from increlora_jax.tasks.demo import load_demo
from increlora_jax.tasks.kind import Batch, Encoded, Metrics, Predictions, Split
from increlora_jax.tasks.registry import load_task
from increlora_jax.training.forward import Forward
from increlora_jax.weights.tokenizer import load_tokenizer

_ROWS = 64


def choose_examples(trained: Trained) -> tuple[list[Batch], str]:
    """Return batches of the run's dev split, or of the demo's texts, and which of both."""
    kind, task = trained.kind, trained.plan.config.task
    try:
        split, where = next(iter(load_task(task).dev.values())), "dev"
    except InputError:  # the run's data are not here
        assert kind.take_inputs is not None
        split, where = kind.take_inputs(_texts(trained)), "the demo's texts"
    tokenizer = load_tokenizer(trained.plan.folder)
    return cut_batches(kind.encode(split, tokenizer, task.max_seq_length, "")), where


def score_dev(trained: Trained) -> Metrics | None:
    """Compute the metrics on the run's dev data; None if they are not here."""
    try:
        splits = load_task(trained.plan.config.task).dev
    except InputError:
        return None
    predictions, encoded = predict_splits(trained, splits)
    return trained.kind.score(predictions, encoded, splits)


def predict_splits(
    trained: Trained, splits: Mapping[str, Split]
) -> tuple[dict[str, Predictions], dict[str, Encoded]]:
    """Predict every row of some splits, with the updates as factors; return the rows too."""
    kind, length, model = trained.kind, trained.plan.config.task.max_seq_length, trained.model
    tokenizer = load_tokenizer(trained.plan.folder)
    encoded = {name: kind.encode(s, tokenizer, length, name) for name, s in splits.items()}

    def predict(parts: Parts, batch: Batch) -> Predictions:
        return kind.predict(model.skeleton.assemble(parts), batch)

    forward, arrays = Forward(predict, trained.plan.layout), model.parts._replace(rules=None)
    predictions = {}
    for name, rows in encoded.items():
        with counted("evaluating", len(rows), f"{name} examples") as advance:
            batches = evaluation_batches(rows, batch_size=_ROWS, buckets=length_buckets(length))
            predictions[name] = forward.over(batches, len(rows), arrays, Stop(), advance)
    return predictions, encoded


def _texts(trained: Trained) -> list[str] | list[tuple[str, str]]:
    texts = load_demo().dev["dev"].first[:EXAMPLES]
    is_pair = trained.kind.head == "question_answering"
    is_pair = is_pair or len(trained.kind.saved.get("columns", ())) == 2
    return list(zip(texts, texts[::-1], strict=True)) if is_pair else texts
