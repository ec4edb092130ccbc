"""Long labelling: an estimate first, what is done is kept, several processes give what one gives."""

import logging

import numpy as np
import pytest

from pimlip_zoo.datasets.builtin import load_builtin
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.errors import InputError
from pimlip_zoo.weak_labels import pool
from pimlip_zoo.weak_labels.calculators import CheapCalculator, find_cheap_calculator
from pimlip_zoo.weak_labels.pool import PoolOptions, cached_labels, labelled_pool

EMT = find_cheap_calculator("emt")


@pytest.fixture(scope="module")
def crystals():
    frames = [frame for frame in load_builtin("cual-emt") if len(frame.numbers) > 3]
    return sorted(frames, key=lambda frame: len(frame.numbers))[:4]


def counted(evaluated, stop=None):
    """EMT that says when it computes, and is interrupted once it has so often."""

    def make():
        calculator = EMT.make()
        compute = calculator.calculate

        def calculate(*args, **options):
            evaluated.append(1)
            if stop is not None and len(evaluated) > stop:
                raise KeyboardInterrupt
            return compute(*args, **options)

        calculator.calculate = calculate
        return calculator

    return CheapCalculator("emt", EMT.version, make)


def test_what_was_labelled_before_an_interruption_is_not_labelled_again(crystals, tmp_path, caplog):
    options = PoolOptions(structures=120, method="displaced")
    whole = []
    wanted = labelled_pool(crystals, counted(whole), options, tmp_path / "whole")
    before, after = [], []
    with caplog.at_level(logging.INFO, "pimlip_zoo"), pytest.raises(KeyboardInterrupt):
        labelled_pool(crystals, counted(before, stop=len(whole) - 15), options, tmp_path / "stopped")
    assert "the labels so far are kept" in caplog.text
    made = labelled_pool(crystals, counted(after), options, tmp_path / "stopped")
    assert len(after) <= 22  # the last twenty, and the two of the estimate
    for a, b in zip(made, wanted, strict=True):
        np.testing.assert_array_equal(a.positions, b.positions)
        assert a.energy == pytest.approx(
            b.energy, abs=1e-9
        )  # EMT adds up in the order of its last neighbour list
    assert not list((tmp_path / "stopped").glob("*.parts"))


def test_single_points_are_kept_in_parts_too(crystals, tmp_path):
    frames, before, after = crystals * 30, [], []
    with pytest.raises(KeyboardInterrupt):
        cached_labels(frames, counted(before, stop=105), tmp_path)
    labelled = cached_labels(frames, counted(after), tmp_path)
    assert len(labelled) == 120
    assert len(after) <= 22
    assert [f.energy for f in labelled[:4]] == pytest.approx([f.energy for f in labelled[4:8]])


def test_an_estimate_comes_first_and_says_what_it_is_made_of(crystals, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "pimlip_zoo"):
        labelled_pool(crystals, EMT, PoolOptions(structures=60, stride=3, temperatures=(300.0,)), tmp_path)
    (line,) = [record.getMessage() for record in caplog.records if "about" in record.getMessage()]
    assert "weak labels of emt: about" in line
    assert "60 structures, 3 evaluations each" in line
    assert "Ctrl-C keeps" in line


@pytest.mark.parametrize("method", ["displaced", "md"])
def test_several_processes_give_what_one_gives(crystals, tmp_path, monkeypatch, method):
    options = PoolOptions(structures=60, method=method, stride=1, temperatures=(300.0, 600.0))
    one = labelled_pool(crystals, EMT, options, tmp_path / "one")
    monkeypatch.setattr(pool, "_WORTH_SHARING", 0.0)
    monkeypatch.setattr(pool, "cores", lambda: 2)
    told = []
    two = labelled_pool(
        crystals, counted([], stop=2), options, tmp_path / "two", lambda done, total: told.append(done)
    )
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a.positions, b.positions, atol=1e-9)
        np.testing.assert_allclose(a.forces, b.forces, atol=1e-8)
    assert told[-1] == 60


def test_what_another_process_cannot_label_is_said(crystals, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "_WORTH_SHARING", 0.0)
    monkeypatch.setattr(pool, "cores", lambda: 2)
    uranium = Frame(numbers=np.array([92, 92]), positions=np.array([[0.0, 0, 0], [2.5, 0, 0]]))
    with pytest.raises(InputError, match="emt fails") as caught:
        cached_labels([*crystals * 15, uranium], EMT, tmp_path)
    assert caught.value.frame == 60


def test_a_calculator_that_no_other_process_can_make_is_not_shared():
    assert pool._elsewhere(EMT)
    assert not pool._elsewhere(EMT._replace(version="another"))
    assert not pool._elsewhere(EMT._replace(name="run:runs/one"))
    assert not pool._elsewhere(EMT._replace(name="strange"))


def test_the_size_of_a_pool_follows_the_molecules():
    def size(kinds, atoms):
        frames = [Frame(np.full(atoms, 1 + kind), np.zeros((atoms, 3))) for kind in range(kinds)]
        return PoolOptions().for_structures(frames).structures

    assert PoolOptions().structures is None
    assert size(1, 9) == 1_500
    assert size(30, 9) == 3_000
    assert size(90, 5) == 6_000
    assert size(1, 100) == 400
    assert size(1, 2_000) == 200
    assert PoolOptions(structures=7).for_structures([Frame(np.array([1]), np.zeros((1, 3)))]).structures == 7
