"""Learning rates warm up, decay, and end where they should."""

import pytest

from pimlip_zoo.training.schedule import RunClock, learning_rate_factor


@pytest.mark.parametrize("name", ["cosine", "exponential", "linear"])
def test_a_decay_starts_at_one_and_ends_at_the_final_factor(name):
    factor = learning_rate_factor(name, warmup_steps=10, clock=RunClock(110, start=10), final=0.01)
    assert factor(10) == pytest.approx(1.0)
    assert factor(110) == pytest.approx(0.01)
    assert factor(10_000) == pytest.approx(0.01)
    values = [factor(step) for step in range(10, 111)]
    assert values == sorted(values, reverse=True)


def test_warm_up_is_linear_and_never_zero():
    factor = learning_rate_factor("constant", warmup_steps=4, clock=RunClock(100, start=4), final=0.5)
    assert [factor(step) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_a_run_that_is_all_warm_up_works():
    factor = learning_rate_factor("cosine", warmup_steps=100, clock=RunClock(50, start=100), final=0.0)
    assert 0 < factor(0) < factor(49) < 1
