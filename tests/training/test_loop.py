"""The loop of a run, over a real model, with what it keeps and logs looked at from outside."""

import json
import signal
import threading
from contextlib import ExitStack
from dataclasses import replace

import jax
import numpy as np
import pytest

from increlora_jax.errors import NonFiniteError
from increlora_jax.methods.table import METHODS
from increlora_jax.run.build import plan_run, prepare_run
from increlora_jax.run.command_line import parse_run
from increlora_jax.runtime.compilation_cache import use_compilation_cache
from increlora_jax.runtime.console import Bar
from increlora_jax.runtime.preemption import Stop
from increlora_jax.runtime.signals import Preempted
from increlora_jax.training.checkpoint import Checkpoints, Keep
from increlora_jax.training.clock import Clock
from increlora_jax.training.journal import Journal
from increlora_jax.training.loop import LAG, Job, Loop, jit_step
from increlora_jax.training.progress import Progress
from increlora_jax.training.run_log import METRICS_FILE, RunLog
from increlora_jax.training.stacked_state import Stacker
from tests.tiny import assert_same, without

STEPS, EVAL_STEPS = 14, 6


@pytest.fixture(scope="module")
def run(short_words):
    use_compilation_cache(None)  # every test trains; the programs are the same
    return prepare_run(plan_run(parse_run(short_words)))


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """A run that nothing happened to: its folder, final state and outcome."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, *trainer_in(folder, run)()


@pytest.fixture
def train(run, tmp_path):
    return trainer_in(tmp_path, run)


def trainer_in(folder, run):
    """Train, and give the final state, the outcome and what was kept: (step, is_best, head)."""
    kept = []

    def train(
        batch_at=run.batch_at, logging_steps=1, progress=None, state=None, stop=None, patience=0
    ):
        progress = progress or Progress()

        def keep(index, state, is_best):
            kept.append((int(state.step), is_best, jax.device_get(state.params.head)))

        checkpoints = Checkpoints(folder / "checkpoints", Keep(2), {})
        bar, log = Bar(STEPS, is_silent=True), RunLog(folder, kept_bytes=progress.log_bytes)
        with log, checkpoints:
            schedule = schedule_of(run, patience)._replace(logging_steps=logging_steps)
            journal = Journal(progress, log, schedule, run.trainer.method, bar.say)
            job = Job(
                *(run.trainer, run.plan.layout, run.evaluator, schedule, checkpoints),
                *(batch_at, keep, [journal], bar, Clock(), stop or Stop()),
                steps_by_shape=getattr(batch_at, "steps_by_shape", tuple),
            )
            state = run.first_state() if state is None else state
            state, (outcome,) = Loop(job, state, run.parts.base).run()
            return state, outcome

    train.kept = kept
    return train


def schedule_of(run, patience):
    return run.plan.timetable._replace(save_steps=4, max_skipped_steps=patience)


def lines_of(folder, split):
    lines = map(json.loads, (folder / METRICS_FILE).read_text().splitlines())
    return [line for line in lines if line["split"] == split]


def test_the_last_state_is_kept_last_and_the_best_when_it_is_reached(train, tmp_path):
    state, outcome = train()
    accuracies = {line["step"]: line["accuracy"] for line in lines_of(tmp_path, "dev")}
    assert list(accuracies) == [6, 12, 14]
    records = [
        step
        for step, accuracy in accuracies.items()
        if accuracy > max((a for s, a in accuracies.items() if s < step), default=-1)
    ]
    assert [(step, best) for step, best, _ in train.kept] == [
        *((step, True) for step in records),
        (STEPS, False),
    ]
    assert outcome.best_metrics["accuracy"] == max(accuracies.values())
    assert outcome.metrics["accuracy"] == accuracies[STEPS]
    for name, value in train.kept[-1][2].items():
        np.testing.assert_array_equal(value, state.params.head[name])


def test_rounds_are_noted_though_numbers_are_read_late(train, run):
    state, outcome = train()
    assert list(outcome.rounds) == [2, 4, 6]
    assert max(outcome.rounds) + LAG < STEPS  # so that some were read while training went on
    grown = dict.fromkeys(run.trainer.skeleton.modules, 1)
    for growth in outcome.rounds.values():
        for name, count in growth.items():
            grown[name] += count
    assert grown == {name: int(slots.rank) for name, slots in state.slots.items()}


def test_only_every_nth_step_and_the_last_are_written(train, tmp_path):
    train(logging_steps=5)
    assert [line["step"] for line in lines_of(tmp_path, "train")] == [0, 5, 10, 13]


def test_padding_is_not_counted_as_tokens(train, run, tmp_path):
    _, outcome = train()
    counted = [line["tokens"] for line in lines_of(tmp_path, "train")]
    real = [
        int((batch["attention_mask"] > 0).sum())  # packed: rows without examples are 0
        for batch in map(run.batch_at, range(STEPS))
    ]
    assert counted == real
    places = [run.batch_at(step)["input_ids"].size for step in range(1, STEPS)]  # those timed
    assert outcome.padding_share == pytest.approx(1 - sum(real[1:]) / sum(places))


@pytest.fixture
def in_background(monkeypatch):
    """Whether each program was compiled in the background, in order."""
    names, compile_here = [], jax.stages.Lowered.compile

    def note(lowered, *args, **options):
        names.append(threading.current_thread().name.startswith("compile"))
        return compile_here(lowered, *args, **options)

    monkeypatch.setattr(jax.stages.Lowered, "compile", note)
    return names


def test_the_program_of_later_steps_compiles_beside_the_first(train, in_background):
    _, outcome = train()
    assert outcome.step_compilations == 2  # scored, and not
    assert in_background.count(False) == 1


def test_the_programs_of_later_shapes_compile_beside_the_first(train, run, in_background):
    batches = replace(run.batch_at, program_cost=1)
    shapes = {batches(step)["input_ids"].shape for step in range(STEPS)}
    assert len(shapes) > 1
    _, outcome = train(batches)
    assert len(shapes) < outcome.step_compilations <= 2 * len(shapes)
    assert in_background.count(False) == 1


@pytest.mark.parametrize("bad", [3, STEPS - 1])
def test_a_step_gone_bad_stops_the_run_with_the_state_before_it(train, run, bad):
    def batch_at(step):
        batch = run.batch_at(step)
        if step == bad:
            batch["weight"] = np.zeros_like(batch["weight"])  # a mean over nothing
        return batch

    with pytest.raises(NonFiniteError, match=rf"step {bad}: the loss is nan.*--learning-rate"):
        train(batch_at, patience=0)
    step, is_best, head = train.kept[-1]
    assert not is_best
    # Steps dispatched before the bad one's numbers were read are in it; the bad one is not.
    assert bad <= step <= bad + LAG
    assert all(np.isfinite(value).all() for value in head.values())


def test_an_interrupt_keeps_what_was_reached(train, run):
    def batch_at(step):
        if step == 5:
            raise KeyboardInterrupt
        return run.batch_at(step)

    with pytest.raises(KeyboardInterrupt):
        train(batch_at)
    assert [(step, best) for step, best, _ in train.kept] == [(5, False)]


class SignalAt(Stop):
    """A stop that is asked for by the real signal before a call."""

    def __init__(self, call):
        super().__init__()
        self._call = call

    def check_call(self, call):
        if call == self._call:
            signal.raise_signal(signal.SIGTERM)
        super().check_call(call)


def resume(train, folder, run, **options):
    checkpoints = Checkpoints(folder / "checkpoints", Keep(2), {})
    step, notes = checkpoints.newest()
    assert not notes
    state = checkpoints.restore(step, run.first_state())
    return train(state=state, progress=checkpoints.read(step).progress[0], **options)


def assert_same_state(got, expected):
    got, expected = (
        jax.tree.map(np.asarray, jax.device_get(s._replace(key=jax.random.key_data(s.key))))
        for s in (got, expected)
    )
    jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.parametrize("at", [1, 6, STEPS - 1])
def test_a_preempted_run_goes_on_as_if_nothing_had_been(train, run, whole, tmp_path, at):
    folder, expected, untouched = whole
    stop = SignalAt(at)
    with stop.listening(), pytest.raises(Preempted) as stopped:
        train(stop=stop)
    assert stopped.value.exit_status == 143
    assert Checkpoints(tmp_path / "checkpoints", Keep(2), {}).newest() == (at, [])
    state, outcome = resume(train, tmp_path, run)
    assert_same_state(state, expected)
    assert (tmp_path / METRICS_FILE).read_bytes() == (folder / METRICS_FILE).read_bytes()
    of_the_run = ("metrics", "best_metrics", "rounds", "skipped")
    assert {n: getattr(outcome, n) for n in of_the_run} == {
        n: getattr(untouched, n) for n in of_the_run
    }


@pytest.fixture(scope="module")
def blocks(short_words):
    """The same run, but that one call carries out four steps."""
    return prepare_run(plan_run(parse_run([*short_words, "--steps-per-execution", "4"])))


def test_steps_of_one_call_are_those_of_as_many(blocks, whole, tmp_path):
    folder, expected, untouched = whole
    state, outcome = trainer_in(tmp_path, blocks)()
    assert outcome.rounds == untouched.rounds
    assert outcome.step_compilations == 2  # of four steps and of one
    numbers = [[line["loss"] for line in lines_of(f, "train")] for f in (tmp_path, folder)]
    np.testing.assert_allclose(*numbers, rtol=1e-4)  # float32 sums in another order
    assert_same(state.slots, expected.slots)


def test_a_bad_step_within_a_call_is_passed_over_alone(blocks, tmp_path):
    def batch_at(step):
        batch = blocks.batch_at(step)
        if step in (2, 9):
            batch["weight"] = np.zeros_like(batch["weight"])
        return batch

    state, outcome = trainer_in(tmp_path, blocks)(batch_at, patience=1)
    assert outcome.skipped == [2, 9]
    assert (state.step, outcome.rounds.keys()) == (STEPS - 2, {3, 5, 7})


@pytest.mark.parametrize("call", [1, 4, 6])
def test_a_run_of_several_steps_a_call_goes_on_after_a_preemption(blocks, tmp_path, call):
    folders = [tmp_path / name for name in ("whole", "stopped")]
    for folder in folders:
        folder.mkdir()
    expected, untouched = trainer_in(folders[0], blocks)()
    train, stop = trainer_in(folders[1], blocks), SignalAt(call)
    with stop.listening(), pytest.raises(Preempted):
        train(stop=stop)
    state, outcome = resume(train, folders[1], blocks)
    assert_same_state(state, expected)
    assert outcome.rounds == untouched.rounds
    assert len({(folder / METRICS_FILE).read_bytes() for folder in folders}) == 1


def test_an_evaluation_cut_short_is_made_up_for(train, run, whole, tmp_path):
    folder, _, untouched = whole
    stop = Stop()

    def batch_at(step):
        if step == EVAL_STEPS - 1:  # heard of only in the evaluation after this step
            signal.raise_signal(signal.SIGINT)
        return run.batch_at(step)

    with stop.listening(), pytest.raises(Preempted) as stopped:
        train(batch_at, stop=stop)
    assert stopped.value.exit_status == 130
    _, outcome = resume(train, tmp_path, run)
    assert outcome.metrics == untouched.metrics
    assert (tmp_path / METRICS_FILE).read_bytes() == (folder / METRICS_FILE).read_bytes()


def test_steps_that_are_not_finite_are_passed_over_and_counted(train, run, tmp_path):
    def batch_at(step):
        batch = run.batch_at(step)
        if step in (2, 3, 8):
            batch["weight"] = np.zeros_like(batch["weight"])  # a mean over nothing
        return batch

    state, outcome = train(batch_at, patience=2)
    assert outcome.skipped == [2, 3, 8]
    assert (state.step, state.skipped) == (STEPS - 3, 3)
    assert outcome.rounds.keys() == {4, 6, 9}  # the optimizer's steps 2, 4 and 6
    lines = {line["step"]: line["loss"] for line in lines_of(tmp_path, "train")}
    assert [step for step, loss in lines.items() if loss is None] == [2, 3, 8]


def test_a_step_passed_over_right_before_a_round_does_not_lose_it(short_words, tmp_path):
    more = {"incre-interval": 10, "init-warmup": 5, "score-window": 1, "top-h": 12}
    words = [*short_words, *(str(word) for name in more for word in (f"--{name}", more[name]))]
    run = prepare_run(plan_run(parse_run(words)))

    def batch_at(step):
        batch = run.batch_at(step)
        if step == 9:
            batch["weight"] = np.zeros_like(batch["weight"])
        return batch

    _, outcome = trainer_in(tmp_path, run)(batch_at, patience=1)
    assert outcome.rounds.keys() == {11}  # the optimizer's step 10


def test_patience_is_for_steps_in_a_row(train, run):
    def batch_at(step):
        batch = run.batch_at(step)
        if step in (1, 3, 5, 6):
            batch["weight"] = np.zeros_like(batch["weight"])
        return batch

    with pytest.raises(NonFiniteError, match=r"step 6:.* 2 steps in a row.*--max-skipped-steps 1"):
        train(batch_at, patience=1)


OTHER_NUMBERS = {
    "max-steps": 33,
    "warmup-steps": 5,
    "learning-rate": 3e-3,
    "weight-decay": 0.1,
    "adam-beta1": 0.8,
    "adam-beta2": 0.9,
    "adam-epsilon": 1e-6,
    "max-grad-norm": 0.5,
    "lora-alpha": 8,
    "reg-orth-coef": 0.5,
    "beta1": 0.5,
    "beta2": 0.6,
    "target-total-rank": 20,
    "top-h": 3,
    "init-warmup": 2,
    "incre-interval": 3,
    "incre-rank-num": 2,
    "score-window": 2,
    "seed": 8,
}
WIDTHS = {"max-rank": 8, "target-rank": 2}


def lower(words, settings, *, is_scored):
    """The text of the step's program for a command."""
    words = without(words, *(flag for name in settings if (flag := f"--{name}") in words))
    words = [*words, *(str(word) for name in settings for word in (f"--{name}", settings[name]))]
    run = prepare_run(plan_run(parse_run(words)))
    state, layout = run.first_state(), run.plan.layout
    state, batch = Stacker(layout, state).stack(state), layout.batch(run.batch_at(0))
    jitted = jit_step(run.trainer, layout, state, run.evaluator.kind.count_tokens)
    return jitted.lower(state, run.parts.base, batch, is_scored=is_scored).as_text()


@pytest.mark.parametrize(
    ("method", "scaling"),
    [(method, "rank") for method in METHODS]
    + [(method, rule) for method in ("increlora", "lora") for rule in ("target", "rsqrt")],
)
def test_runs_of_other_numbers_are_the_same_program(short_words, run_once, method, scaling):
    words = [*short_words, "--pad-to-max-length", "--method", method, "--scaling", scaling]
    if method == "lora-pattern":
        words += ["--rank-pattern", str(run_once() / "results.json")]
    for is_scored in (False, True) if method == "increlora" else (False,):
        first, other = (
            lower(words, WIDTHS | numbers, is_scored=is_scored) for numbers in ({}, OTHER_NUMBERS)
        )
        assert first == other


@pytest.fixture(scope="module")
def pair(short_words):
    """Two runs that train together."""
    return prepare_run(plan_run(parse_run([*without(short_words, "--seed"), "--seeds", "7,8"])))


def train_pair(pair, folder, batch_at, patience, *, is_silent=True):
    """Train both. Give the outcomes and what was kept: (index, step, is_best)."""
    kept, schedule = [], schedule_of(pair, patience)
    bar = Bar(STEPS, is_silent=is_silent)
    with ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(folder / "checkpoints", Keep(2), {}))
        journals = []
        for member in pair.plan.members:
            (folder / member.name).mkdir()
            log = stack.enter_context(RunLog(folder / member.name))
            journals.append(
                Journal(Progress(), log, schedule, pair.trainer.method, bar.say, member.name)
            )
        job = Job(
            *(pair.trainer, pair.plan.layout, pair.evaluator, schedule, checkpoints, batch_at),
            lambda index, state, is_best: kept.append((index, int(state.step), is_best)),
            *(journals, bar, Clock(), Stop()),
        )
        try:
            return *Loop(job, pair.first_state(), pair.parts.base).run(), kept
        except NonFiniteError as error:
            return error, None, kept


def test_two_runs_share_calls_of_several_steps(short_words, pair, tmp_path):
    words = [*without(short_words, "--seed"), "--seeds", "7,8", "--steps-per-execution", "4"]
    blocks = prepare_run(plan_run(parse_run(words)))
    told = []
    for name, runs in {"blocks": blocks, "single": pair}.items():
        (tmp_path / name).mkdir()
        state, outcomes, _ = train_pair(runs, tmp_path / name, runs.batch_at, patience=0)
        told.append((state.slots, [outcome.rounds for outcome in outcomes]))
    (slots, rounds), (expected, expected_rounds) = told
    assert rounds == expected_rounds
    assert_same(slots, expected)


def spoil(pair, index, steps):
    """The batches of a pair, of which one run's are spoiled at some steps."""

    def batch_at(step):
        batch = pair.batch_at(step)
        if step in steps:
            batch["weight"][index] = 0  # a mean over nothing
        return batch

    return batch_at


def test_a_step_gone_bad_is_passed_over_by_that_run_alone(pair, run, tmp_path, capsys):
    batch_at = spoil(pair, 1, (3, 5))
    state, (first, second), kept = train_pair(pair, tmp_path, batch_at, 1, is_silent=False)
    said = capsys.readouterr().err.splitlines()
    growth = "step 2: seed-7 grows to total rank 16 of 24; seed-8 grows to total rank 16 of 24"
    assert growth in said
    assert sum(line.startswith("step 12: seed-7 accuracy 0.") for line in said) == 1
    assert (first.skipped, second.skipped) == ([], [3, 5])
    assert state.step.tolist() == [STEPS, STEPS - 2]
    assert (list(first.rounds), list(second.rounds)) == ([2, 4, 6], [2, 6, 8])
    assert kept[-2:] == [(0, STEPS, False), (1, STEPS - 2, False)]
    outcome = trainer_in(tmp_path, run)()[1]
    assert first.rounds == outcome.rounds
    folders = tmp_path / "seed-7", tmp_path
    losses = [[line["loss"] for line in lines_of(folder, "train")] for folder in folders]
    np.testing.assert_allclose(*losses, rtol=1e-4)  # float32 sums in another order


def test_a_run_that_goes_on_failing_ends_all_and_is_named(pair, tmp_path):
    error, _, kept = train_pair(pair, tmp_path, spoil(pair, 1, (3, 4)), patience=1)
    assert str(error).startswith("seed-8: step 4: the loss is nan")
    assert {(index, is_best) for index, _, is_best in kept} >= {(0, False), (1, False)}
