"""Residuals, losses, gradients and short trainings are the numbers that they were."""

import json

import numpy as np
import pytest
from reference import FILE, of_losses, of_surfaces, of_trainings, unlabelled_file

EXPECTED = json.loads(FILE.read_text())


def compare(numbers, *kinds):
    expected = {name: value for name, value in EXPECTED.items() if name.startswith(kinds)}
    assert numbers.keys() == expected.keys()
    moved = {
        name: abs(np.asarray(expected[name]) - value).max()
        for name, value in numbers.items()
        if not np.allclose(value, expected[name], rtol=1e-10, atol=1e-10)
    }
    assert not moved


def test_residuals_and_their_gradients_have_not_moved():
    compare(of_surfaces(), "residual", "gradient")


def test_losses_and_their_gradients_have_not_moved(tmp_path):
    compare(of_losses(unlabelled_file(tmp_path)), "loss")


@pytest.mark.slow
def test_short_trainings_have_not_moved(tmp_path):
    compare(of_trainings(tmp_path), "training")
