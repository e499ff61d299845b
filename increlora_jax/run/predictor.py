"""Answers of a trained model to texts, from Python or by the thousand."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from increlora_jax.errors import InputError
from increlora_jax.nn.skeleton import Parts, split
from increlora_jax.run.loading import load_trained
from increlora_jax.run.trained import Trained
from increlora_jax.runtime.compilation_cache import use_compilation_cache
from increlora_jax.runtime.preemption import Stop
from increlora_jax.tasks.batching import evaluation_batches, length_buckets
from increlora_jax.tasks.kind import Batch, Encoded, Kind, Predictions, Split, count_not_finite
from increlora_jax.training.batches import PROGRAM_COST
from increlora_jax.training.evaluation import choose_batches
from increlora_jax.training.forward import Batches, Forward
from increlora_jax.weights.tokenizer import load_tokenizer

BATCH_SIZE = 64
"""Rows of a batch by default."""

_FEW = (1, 4, 16)
"""Smaller numbers of rows, for a few texts."""


class _Piece(NamedTuple):
    split: Split
    encoded: Encoded


class Predictor:
    """A trained model that answers texts; several threads may call it.

    Its updates are merged into the base. One program is compiled for each length of batches and
    each of few numbers of rows, when it is first needed.

    Args:
        trained: The model.
        batch_size: Rows of a batch.
        stop: A request to stop, checked between batches.

    Raises:
        InputError: If the task's kind cannot answer.
    """

    def __init__(
        self, trained: Trained, batch_size: int = BATCH_SIZE, stop: Stop | None = None
    ) -> None:
        self.kind: Kind = trained.kind
        if self.kind.answer is None:
            raise InputError(f"--run: models for {self.kind.task} have no answers here")
        task, layout = trained.plan.config.task, trained.plan.layout
        skeleton, parts = split(trained.model.merge(), lambda path: False)
        dtype = jnp.dtype(task.dtype)
        self._base: dict[str, Array] = layout.place(
            {path: value.astype(dtype) for path, value in parts.base.items()}
        )
        empty, predict = Parts({}, {}, {}, {}, parts.statistics), self.kind.predict

        def forward(base: dict[str, Array], batch: Batch) -> Predictions:
            whole = empty._replace(base=layout.gather(base))
            return predict(skeleton.assemble(whole), batch)

        self._forward = Forward(forward, layout)
        self._layout, self._stop = layout, stop or Stop()
        self._tokenizer = load_tokenizer(trained.plan.folder)
        self._length = task.max_seq_length
        self._pack = self.kind.pack if trained.plan.can_pack else None
        self._batch_size = -(-batch_size // layout.blocks) * layout.blocks
        self._lock = threading.Lock()  # a tokenizer is not made for several threads

    def __call__(self, texts: Any, *, top_k: int | None = None) -> Any:
        """Answer a text, or a sequence of texts.

        Args:
            texts: A string, or a pair of strings as a tuple, or a sequence of them. A question
                comes with its context: (question, context).
            top_k: The number of labels to keep, the most probable first; default: all.

        Returns:
            A record for each text, such as `Classified(label, probabilities)`; one record for one
                text.

        Raises:
            InputError: If a text is no such thing.
        """
        is_one = isinstance(texts, str) or (
            isinstance(texts, tuple) and len(texts) == 2 and all(isinstance(t, str) for t in texts)
        )
        rows = [texts] if is_one else list(texts)
        if not rows:
            return []
        assert self.kind.take_inputs is not None
        answers = self._answer(self._encode(self.kind.take_inputs(rows)))
        if top_k is not None:
            answers = keep_top(self.kind, answers, top_k)
        return answers[0] if is_one else answers

    def stream(self, splits: Iterable[Split]) -> Iterator[tuple[Split, Encoded, Sequence[Any]]]:
        """Answer splits one after the other; the next is read and encoded meanwhile.

        Yields:
            A split, its rows, and the answers to its examples.

        Raises:
            InputError: If a split cannot be read.
            Preempted: If a stop was requested.
        """
        source = iter(splits)

        def encode_next() -> _Piece | None:
            found = next(source, None)
            return None if found is None else self._encode(found)

        with ThreadPoolExecutor(1, thread_name_prefix="encode") as ahead:
            future: Future[_Piece | None] = ahead.submit(encode_next)
            while (piece := future.result()) is not None:
                future = ahead.submit(encode_next)
                yield piece.split, piece.encoded, self._answer(piece)

    def _encode(self, inputs: Split) -> _Piece:
        with self._lock:
            return _Piece(inputs, self.kind.encode(inputs, self._tokenizer, self._length, ""))

    def _answer(self, piece: _Piece) -> Sequence[Any]:
        assert self.kind.answer is not None
        count = len(piece.encoded)
        batches = self._batches(piece.encoded)
        predictions = self._forward.over(batches, count, self._base, self._stop)
        if bad := count_not_finite(predictions):
            raise InputError(
                f"the model gives numbers that are not finite for {bad} of {count} rows. Restore "
                "its weights, or train again with a lower --learning-rate"
            )
        return self.kind.answer(predictions, piece.encoded, piece.split)

    def _batches(self, encoded: Encoded) -> Batches:
        buckets = length_buckets(self._length)
        few = next((n for n in _FEW if n >= len(encoded)), self._batch_size)
        if len(encoded) <= self._batch_size:
            few = -(-min(few, self._batch_size) // self._layout.blocks) * self._layout.blocks
            rows = self._layout.own_rows(few)
            return evaluation_batches(encoded, batch_size=few, buckets=buckets, rows=rows)
        choose = choose_batches(
            [encoded],
            self._batch_size,
            buckets,
            self._layout.own_rows(self._batch_size),
            self._pack,
            is_free=True,
            program_cost=PROGRAM_COST.get(jax.default_backend(), PROGRAM_COST["gpu"]),
        )
        return choose(encoded)


def keep_top(kind: Kind, answers: Sequence[Any], count: int) -> list[Any]:
    """Return the answers with their `count` most probable labels only.

    Raises:
        InputError: If the answers have no probabilities, or the count is not positive.
    """
    if kind.labels is None:
        raise InputError(f"--top-k is for classes, and {kind.task} has none here. Leave it out")
    if count < 1:
        raise InputError(f"--top-k {count} is not at least 1")

    def cut(probabilities: dict[str, float]) -> dict[str, float]:
        return dict(sorted(probabilities.items(), key=lambda pair: -pair[1])[:count])

    return [answer._replace(probabilities=cut(answer.probabilities)) for answer in answers]


def load(
    run: str | Path,
    *,
    adapter: str = "last",
    model: str | None = None,
    method: str | None = None,
    batch_size: int = BATCH_SIZE,
) -> Predictor:
    """Load a trained model to answer texts.

    Args:
        run: The folder of a run, of an adapter, or of a whole model.
        adapter: `last` or `best`, of a run.
        model: Another place of the base model; default: as in training.
        method: `package.module:function` of the user's method that trained the run, if any.
        batch_size: Rows of a batch.

    Returns:
        A function of texts.

    Raises:
        InputError: If the folder holds no trained model, or one that cannot be loaded.
    """
    base = {"model": model, "model_revision": None, "model_subfolder": None} if model else {}
    trained = load_trained(Path(run).expanduser(), adapter=adapter, base=base, method=method)
    use_compilation_cache(trained.plan.config.training.compilation_cache_dir)
    return Predictor(trained, batch_size)
