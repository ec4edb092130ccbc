import pytest

from pimlip_zoo.consistency.schedules import Constant, Decay, WarmUp
from pimlip_zoo.errors import InputError


def test_constant_is_one():
    assert Constant().factor(0) == Constant().factor(10**6) == 1.0


def test_warm_up_rises_linearly_from_its_start():
    schedule = WarmUp(100, start=50)
    assert [schedule.factor(step) for step in (0, 49, 50, 75, 150, 1000)] == [0.0, 0.0, 0.0, 0.25, 1.0, 1.0]
    assert WarmUp(0).factor(0) == 1.0


def test_decay_falls_from_one_to_its_last_value():
    schedule = Decay(100, start=10, last=0.2)
    assert schedule.factor(0) == schedule.factor(10) == 1.0
    assert schedule.factor(60) == pytest.approx(0.6)
    assert schedule.factor(110) == schedule.factor(10**6) == pytest.approx(0.2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: WarmUp(-1),
        lambda: Decay(0),
        lambda: Decay(10, last=2.0),
    ],
)
def test_nonsense_is_refused(make):
    with pytest.raises(InputError):
        make()
