"""What is said at the end: too short, long enough, learnt by heart."""

import pytest

from pimlip_zoo.training.verdict import verdict_on


def rows(errors, quantity="forces"):
    return [{"step": 250.0 * (k + 1), f"valid_{quantity}_rmse": error} for k, error in enumerate(errors)]


FALLING = [0.1 * 0.95**k for k in range(20)]


@pytest.mark.parametrize("quantity", ["forces", "energy"])
def test_a_run_whose_validation_still_falls_is_too_short(quantity):
    (said,) = verdict_on(rows(FALLING, quantity), {})
    assert "still falls, by 10 % in the last tenth: train longer" in said


def test_a_run_that_has_stopped_falling_is_told_since_when():
    (said,) = verdict_on(rows(FALLING[:9] + [0.08] * 11), {})
    assert "has not fallen since step 2,250 of 5,000" in said


def test_a_few_bad_atoms_do_not_end_a_run_whose_mean_error_falls():
    levelled = rows(FALLING[:9] + [0.08] * 11)
    for k, row in enumerate(levelled):
        row["valid_forces_mae"] = 0.05 * 0.95**k
    assert verdict_on(levelled, {}) == []
    for row in levelled:
        row["valid_forces_mae"] = row["valid_forces_rmse"] / 2
    assert "has not fallen since step 2,250" in verdict_on(levelled, {})[0]


def test_nothing_is_said_of_a_run_that_just_levels_off_or_of_a_few_validations():
    assert verdict_on(rows(FALLING + [FALLING[-1] * (1 - 0.002 * k) for k in range(5)]), {}) == []
    assert verdict_on(rows(FALLING[:4]), {}) == []
    assert verdict_on([], {}) == []
    assert verdict_on([{"step": 1.0}], {}) == []


def test_learning_by_heart_is_said():
    errors = {"training": {"forces": {"rmse": 0.005}}, "validation": {"forces": {"rmse": 0.05}}}
    (said,) = verdict_on([], errors)
    assert "learnt by heart" in said
    assert "5 meV/Å" in said
    errors["training"]["forces"]["rmse"] = 0.03
    assert verdict_on([], errors) == []
    assert verdict_on([], {"training": errors["training"]}) == []


def test_energies_tell_where_there_are_no_forces():
    errors = {
        "training": {"forces": None, "energy_per_atom": {"rmse": 0.0001}},
        "validation": {"forces": None, "energy_per_atom": {"rmse": 0.001}},
    }
    (said,) = verdict_on([], errors)
    assert "meV/atom" in said
