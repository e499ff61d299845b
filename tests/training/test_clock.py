import math
import time

import pytest

from increlora_jax.training.clock import Clock


@pytest.fixture
def wait(monkeypatch):
    """Make time pass by hand."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


def test_seconds_count_from_when_it_was_made(wait):
    clock = Clock()
    assert clock.seconds == 0
    wait(3)
    assert clock.seconds == 3


def test_training_time_counts_from_the_first_step_and_leaves_pauses_out(wait):
    clock = Clock()
    wait(5)
    with clock.phase("compiling"):
        wait(10)
    assert math.isnan(clock.to_first_step)
    clock.mark_first_step()
    assert clock.to_first_step == 15
    assert clock.training_seconds == 0
    wait(2)
    with clock.phase("compiling"):
        wait(20)
    wait(4)
    assert clock.training_seconds == 6
    assert clock.seconds == 41
    assert clock.to_first_step == 15


def test_a_pause_that_fails_is_a_pause(wait):
    clock = Clock()
    clock.mark_first_step()

    def fail():
        with clock.phase("compiling"):
            wait(7)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    wait(1)
    assert clock.training_seconds == 1


def test_phases_are_summed_by_name_and_training_is_the_rest(wait):
    clock = Clock(imports=2.0)
    with clock.phase("data"):
        wait(3)
    clock.add_earlier(100, 50)
    clock.mark_first_step()
    wait(7)
    for _ in range(2):
        with clock.phase("evaluating"):
            wait(4)
    assert clock.phases == {"imports": 2, "data": 3, "evaluating": 8, "training": 7}
