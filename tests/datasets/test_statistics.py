"""What is taken from the data: species, references, scale, neighbours."""

import numpy as np
import pytest

from pimlip_zoo.datasets.builtin import load_builtin
from pimlip_zoo.datasets.coverage import isolated_atom_energies
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.neighbours import frame_to_sample
from pimlip_zoo.datasets.statistics import (
    average_neighbours,
    check_references,
    fit_references,
    force_rms,
    references_from_atoms,
    species_of,
)
from pimlip_zoo.errors import InputError

SPECIES = ("H", "C", "O")


def molecules(seed=0, count=12):
    rng = np.random.default_rng(seed)
    truth = np.array([-13.0, -1030.0, -2040.0])
    frames = []
    for _ in range(count):
        numbers = rng.choice([1, 6, 8], size=rng.integers(3, 9))
        composition = np.array([np.count_nonzero(numbers == z) for z in (1, 6, 8)])
        positions = 3.0 * rng.normal(size=(len(numbers), 3))
        frames.append(Frame(numbers=numbers, positions=positions, energy=float(composition @ truth)))
    return frames, truth


def test_references_of_varied_compositions_are_found_exactly():
    frames, truth = molecules()
    references = fit_references(frames, SPECIES)
    assert references.rank == 3
    np.testing.assert_allclose(references.energies, truth, rtol=1e-10)


def test_one_composition_leaves_the_references_undetermined_and_says_so():
    frames = load_builtin("ethanol-gfn2/train")[:20]
    references = fit_references(frames, SPECIES)
    assert references.rank == 1
    composition = np.array([6.0, 2.0, 1.0])
    mean = np.mean([frame.energy for frame in frames])
    assert composition @ references.energies == pytest.approx(mean, rel=1e-10)


def test_isolated_atoms_are_single_and_not_periodic():
    atom = Frame(numbers=np.array([8]), positions=np.zeros((1, 3)), energy=-5.0)
    crystal = Frame(
        numbers=np.array([6]),
        positions=np.zeros((1, 3)),
        cell=np.eye(3),
        pbc=np.ones(3, dtype=bool),
        energy=-7.0,
    )
    assert isolated_atom_energies([atom, crystal, *molecules()[0]]) == {"O": -5.0}


def test_a_missing_reference_is_named():
    with pytest.raises(InputError, match="no energy reference for C, O"):
        references_from_atoms({"H": -13.0}, SPECIES, "given")


def test_energies_far_from_their_references_are_refused_with_the_frame():
    frames, _ = molecules()
    wrong = references_from_atoms({"H": 0.0, "C": 0.0, "O": 0.0}, SPECIES, "given")
    with pytest.raises(InputError, match=r"frame 0, energy: .*eV per atom from the references \(given\)"):
        check_references(frames, SPECIES, wrong)
    check_references(frames, SPECIES, fit_references(frames, SPECIES))


def test_unlabelled_structures_do_not_count_in_the_scale_of_the_forces():
    forces = np.array([[1.0, 2.0, 2.0], [np.nan, np.nan, np.nan]])
    frames = [
        Frame(numbers=np.array([1, 1]), positions=np.eye(3)[:2], forces=forces),
        Frame(numbers=np.array([1]), positions=np.zeros((1, 3))),
    ]
    assert force_rms(frames) == pytest.approx(np.sqrt(3.0))
    assert force_rms(frames[1:]) is None


def test_species_are_ordered_by_atomic_number():
    assert species_of(molecules()[0]) == ("H", "C", "O")


def test_a_widened_list_does_not_change_the_number_of_neighbours():
    frames = load_builtin("cual-emt/train")[:6]
    species = species_of(frames)
    near = [frame_to_sample(frame, species, 4.0) for frame in frames]
    wide = [frame_to_sample(frame, species, 5.5) for frame in frames]
    assert average_neighbours(near, 4.0) == average_neighbours(wide, 4.0)
