"""Several adapters over one base in one process: by name, or mixed within a batch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from increlora_jax.core.adapter import Adapter
from increlora_jax.errors import InputError, suggest
from increlora_jax.interop.peft_model import Found, attach_found, widen
from increlora_jax.interop.peft_reading import is_peft, read_peft
from increlora_jax.models.registry import abstract_model, find_spec
from increlora_jax.nn.adapter_files import read_adapter_config
from increlora_jax.nn.factors import Factors
from increlora_jax.nn.skeleton import Parts, Skeleton
from increlora_jax.run.build import Plan, load_base
from increlora_jax.run.folder import CONFIG, name_adapter
from increlora_jax.run.foreign import describe_peft_task
from increlora_jax.run.loading import load_trained
from increlora_jax.run.predictor import BATCH_SIZE, Predictor, keep_top, merged_predictor
from increlora_jax.run.start import Start, read_start
from increlora_jax.run.trained import TOLD
from increlora_jax.runtime.compilation_cache import use_compilation_cache
from increlora_jax.tasks.kind import Batch, Encoded, Kind, Predictions
from increlora_jax.tasks.registry import restore_kind
from increlora_jax.weights.folder import read_config
from increlora_jax.weights.identity import identify_model

Where = str | Path


class _Own(NamedTuple):
    """The arrays of one adapter, or of all in a stack."""

    adapters: dict[str, Adapter]
    head: dict[str, Array]


class _Bank(NamedTuple):
    """Adapters by name, and the predictor of all; never changed, so that threads may share it."""

    held: dict[str, "_Held"]
    predictor: Predictor


class ManyPredictor:
    """Adapters over one base that answer texts; several threads may call it.

    A batch may mix adapters: each row takes its own from a stack of all.

    Args:
        folders: The folders of runs or adapters, by the names to call them by.
        model: Another place of the base model; default: as the first was trained.
        adapter: `last` or `best`, of runs.
        batch_size: Rows of a batch.

    Raises:
        InputError: If an adapter cannot be loaded, or is of another base or task than the first.

    >>> import increlora_jax as il
    >>> il.ManyPredictor({})
    Traceback (most recent call last):
    increlora_jax.errors.InputError: il.load: no adapters. Give a folder, or folders by name
    """

    def __init__(
        self,
        folders: Mapping[str, Where],
        model: str | None = None,
        adapter: str = "last",
        batch_size: int = BATCH_SIZE,
    ) -> None:
        if not folders:
            raise InputError("il.load: no adapters. Give a folder, or folders by name")
        self._adapter, self._batch_size = adapter, batch_size
        places = {name: self._find(folder) for name, folder in folders.items()}
        first = load_trained(next(iter(places.values())), base=_place(model))
        use_compilation_cache(first.plan.config.training.compilation_cache_dir)
        self._plan = first.plan
        self._bank = self._stack({name: _read(own, self._plan) for name, own in places.items()})

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the adapters."""
        return tuple(self._bank.held)

    def add(self, name: str, folder: Where) -> None:
        """Add an adapter, or replace the one of this name; programs are compiled anew.

        Raises:
            InputError: If it cannot be loaded, or is of another base or task; nothing is changed.
        """
        self._bank = self._stack(self._bank.held | {name: _read(self._find(folder), self._plan)})

    def __call__(
        self, texts: Any, adapter: str | Sequence[str], *, top_k: int | None = None
    ) -> Any:
        """Answer a text, or a sequence of texts.

        Args:
            texts: As `Predictor` takes them.
            adapter: The name of an adapter, or one for each text.
            top_k: The number of labels to keep, the most probable first; default: all.

        Returns:
            A record for each text, or one record for one text.

        Raises:
            InputError: If a name or a text is wrong.
        """
        held, predictor = self._bank
        rows, is_one = predictor.rows_of(texts)
        named = [adapter] * len(rows) if isinstance(adapter, str) else list(adapter)
        if len(named) != len(rows):
            raise InputError(f"adapter: {len(named)} names for {len(rows)} texts. Give as many")
        for name in named:
            if name not in held:
                raise InputError(f"adapter {name!r} is unknown{suggest(name, tuple(held))}")
        if not rows:
            return []
        places = np.array([list(held).index(name) for name in named], np.int32)
        piece = predictor.encode(rows, lambda encoded: _mark(encoded, places))
        predictions = predictor.predict(piece)
        answers: list[Any] = [None] * len(rows)
        for place, (name, own) in enumerate(held.items()):
            if name in named:
                assert own.kind.answer is not None
                each = own.kind.answer(predictions, piece.encoded, piece.split)
                each = each if top_k is None else keep_top(own.kind, each, top_k)
                for index in np.flatnonzero(places == place):
                    answers[int(index)] = each[int(index)]
        return answers[0] if is_one else answers

    def _find(self, folder: Where) -> Path:
        path = Path(folder).expanduser()
        return path / name_adapter(self._adapter) if (path / CONFIG).is_file() else path

    def _stack(self, held: dict[str, "_Held"]) -> _Bank:
        plan = self._plan
        skeleton, parts, stacked = _stack([own.start for own in held.values()], plan)
        base, predict = plan.layout.place(parts.base), plan.data.kind.predict
        empty = parts._replace(adapters={}, head={}, base={}, rules=None)

        def forward(model: tuple[_Own, dict[str, Array]], batch: Batch) -> Predictions:
            stack, base = model

            def of_row(place: Array, row: Batch) -> Predictions:
                own = jax.tree.map(lambda leaf: leaf[place], stack)
                whole = empty._replace(adapters=own.adapters, head=own.head, base=base)
                told = predict(skeleton.assemble(whole), {n: v[None] for n, v in row.items()})
                return jax.tree.map(lambda leaf: leaf[0], told)

            rest = {name: value for name, value in batch.items() if name != _PLACE}
            return jax.vmap(of_row)(batch[_PLACE], rest)

        own = Predictor(plan, (stacked, base), forward, batch_size=self._batch_size)
        return _Bank(held, own)


class _Held(NamedTuple):
    """An adapter, with the kind that answers for it."""

    start: Start
    kind: Kind


def _read(folder: Path, plan: Plan) -> _Held:
    """Read an adapter of the base model of a plan.

    Raises:
        InputError: If it cannot be read, or is of another base or head.
    """
    own, config = plan.data.kind, read_config(plan.folder)
    if is_peft(folder):
        saved = describe_peft_task(folder, plan.folder, read_peft(folder))
    else:
        saved = dict(read_adapter_config(folder))
    kind = restore_kind(saved, plan.config.task)
    heads = [(k.head, k.head_options.get("num_labels")) for k in (kind, own)]
    if heads[0] != heads[1]:
        raise InputError(
            f"{folder} is of {kind.task}, whose head is another than the first adapter's. Load it "
            "by itself"
        )
    _check_alike(folder, {**saved, **saved.get("settings", {})}, plan)
    model = abstract_model(config, head=kind.head, **kind.head_options)
    identity = {"base model": identify_model(plan.folder)}
    table = find_spec(config).weights
    return _Held(read_start(folder, model, table, identity, ignore_head=False), kind)


def _check_alike(folder: Path, saved: Mapping[str, Any], plan: Plan) -> None:
    """Check that an adapter reads texts as the first one does: as many, as long, as precisely."""
    first = {**plan.data.kind.saved, **{n: getattr(plan.config.task, n) for n in TOLD}}
    here, there = (
        {n: told.get(n, first[n]) for n in TOLD} | {"text columns": len(told.get("columns") or ())}
        for told in (first, saved)
    )
    for name, value in there.items():
        if value != here[name]:
            raise InputError(
                f"{folder} answers with {name} {value}, and the first adapter with {here[name]}. "
                "Load it by itself"
            )


def _stack(starts: Sequence[Start], plan: Plan) -> tuple[Skeleton, Parts, _Own]:
    """Attach the modules of all adapters, of the widest rank, and stack their arrays.

    Returns:
        The skeleton and its parts with the base, and the stack.
    """
    shapes = {
        path: (own.left.shape[0], own.right.shape[1])
        for start in starts
        for path, own in start.factors.items()
    }
    width = max(1, *(own.rank for start in starts for own in start.factors.values()))
    wide = {p: Factors(np.zeros((n, width)), np.zeros((width, m))) for p, (n, m) in shapes.items()}
    none = {p: Factors(np.zeros((n, 0)), np.zeros((0, m))) for p, (n, m) in shapes.items()}
    head = starts[0].full
    model, report = load_base(plan, jnp.float32)
    for names in (
        {*report.new_parameters} - head.keys(),
        *(s.full.keys() ^ head.keys() for s in starts),
    ):
        if names:
            raise InputError(
                f"{min(names)} is not in every adapter and may have another value in each. Load "
                "the adapters by themselves"
            )
    skeleton, parts = attach_found(model, Found(wide, head))
    each = [
        _Own(
            {path: widen(start.factors.get(path, none[path]), width) for path in shapes},
            {path: jnp.asarray(start.full.get(path, v)) for path, v in parts.head.items()},
        )
        for start in starts
    ]
    return skeleton, parts, jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)


_PLACE = "adapter"
"""Field of a batch with the place of each row's adapter in the stack."""


def _mark(encoded: Encoded, places: np.ndarray) -> Encoded:
    """Add the place of its example's adapter to every row."""
    example = encoded.beside.get("example", np.arange(len(encoded)))
    fixed = {**encoded.fixed, _PLACE: places[example]}
    return Encoded(encoded.ragged, fixed, encoded.beside, encoded.notes, encoded.num_cut)


def _place(model: str | None) -> dict[str, str | None]:
    return {"model": model, "model_revision": None, "model_subfolder": None} if model else {}


def load(
    run: Where | Mapping[str, Where],
    *,
    adapter: str = "last",
    model: str | None = None,
    method: str | None = None,
    batch_size: int = BATCH_SIZE,
) -> Predictor | ManyPredictor:
    """Load a trained model to answer texts.

    Args:
        run: The folder of a run, of an adapter, or of a whole model; or folders of adapters over
            one base, by name.
        adapter: `last` or `best`, of a run.
        model: Another place of the base model; default: as in training.
        method: `package.module:function` of the user's method that trained the run, if any.
        batch_size: Rows of a batch.

    Returns:
        A function of texts.

    Raises:
        InputError: If the folder holds no trained model, or one that cannot be loaded.

    >>> import increlora_jax as il
    >>> il.load("nowhere")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    increlora_jax.errors.InputError: run nowhere: no trained model is here. Give the folder...
    """
    if isinstance(run, Mapping):
        if method is not None:
            raise InputError("method is for a single run. Load runs of such methods one by one")
        return ManyPredictor(run, model, adapter, batch_size)
    base = _place(model)
    trained = load_trained(Path(run).expanduser(), adapter=adapter, base=base, method=method)
    use_compilation_cache(trained.plan.config.training.compilation_cache_dir)
    return merged_predictor(trained, batch_size)
