"""The ASE calculator agrees with the potential, reuses its neighbour lists, refuses what it cannot compute."""

import numpy as np
import pytest
import torch

from pimlip_zoo.datasets.frame import frame_to_atoms
from pimlip_zoo.deploy.ase import PimlipCalculator
from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import stress_from_virial
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.registry import get_model
from pimlip_zoo.testing import STRUCTURES, as_graph, structure

SPECIES = ("H", "C", "O")


@pytest.fixture(scope="module")
def potential():
    torch.manual_seed(0)
    info = get_model("nequip")
    config = info.configure(channels=4, radial_hidden=(8,), cutoff=4.0, avg_num_neighbors=6.0)
    return Potential(
        info.model(config, SPECIES).double(), energy_references=torch.tensor([-1.0, -2.0, -3.0])
    ).eval()


@pytest.mark.parametrize("name", STRUCTURES)
def test_energy_forces_and_stress_are_the_potentials(potential, name):
    frame = structure(name, SPECIES)
    atoms = frame_to_atoms(frame)
    atoms.calc = PimlipCalculator(potential)
    graph = as_graph(frame, SPECIES, potential.cutoff)
    expected = potential(graph)
    assert atoms.get_potential_energy() == pytest.approx(float(expected.energy.detach()), abs=1e-11)
    np.testing.assert_allclose(atoms.get_forces(), expected.forces.detach().numpy(), atol=1e-11)
    np.testing.assert_allclose(
        atoms.get_potential_energies(), expected.atomic_energy.detach().numpy(), atol=1e-11
    )
    if abs(np.linalg.det(frame.cell)) > 0:
        stress = stress_from_virial(expected.virial, graph.cell)[0].detach().numpy()
        np.testing.assert_allclose(atoms.get_stress(voigt=False), stress, atol=1e-12)


def test_stress_is_the_derivative_of_the_energy_by_strain_over_the_volume(potential):
    from ase.calculators.fd import calculate_numerical_stress

    atoms = frame_to_atoms(structure("left_handed", SPECIES))
    atoms.calc = PimlipCalculator(potential)
    numerical = calculate_numerical_stress(atoms, eps=1e-5, voigt=True)
    np.testing.assert_allclose(atoms.get_stress(), numerical, atol=1e-8)


def test_lists_are_reused_within_the_skin_and_results_do_not_depend_on_it(potential):
    rng = np.random.default_rng(0)
    frames = [frame_to_atoms(structure("triclinic", SPECIES)) for _ in range(2)]
    calculators = [PimlipCalculator(potential, skin=0.6), PimlipCalculator(potential, skin=0.0)]
    for atoms, calculator in zip(frames, calculators, strict=True):
        atoms.calc = calculator
    for _ in range(12):
        move = rng.normal(scale=0.03, size=frames[0].positions.shape)
        for atoms in frames:
            atoms.positions += move
        np.testing.assert_allclose(frames[0].get_forces(), frames[1].get_forces(), atol=1e-11)
    assert calculators[0].neighbours.builds < 5
    assert calculators[1].neighbours.builds == 12


def test_a_change_of_cell_periodicity_or_atoms_builds_a_new_list(potential):
    atoms = frame_to_atoms(structure("triclinic", SPECIES))
    atoms.calc = PimlipCalculator(potential, skin=1.0)
    reference = PimlipCalculator(potential, skin=0.0)

    def check():
        np.testing.assert_allclose(
            atoms.get_forces(), reference.get_property("forces", atoms.copy()), atol=1e-11
        )

    check()
    atoms.set_cell(atoms.cell.array * 1.01, scale_atoms=True)
    check()
    atoms.pbc = [True, False, True]
    check()
    atoms.numbers = atoms.numbers[::-1].copy()
    check()
    del atoms[0]
    check()


def test_energy_is_conserved_in_dynamics(potential):
    from ase import units
    from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
    from ase.md.verlet import VelocityVerlet

    atoms = frame_to_atoms(structure("triclinic", SPECIES))
    atoms.calc = PimlipCalculator(potential)
    MaxwellBoltzmannDistribution(atoms, temperature_K=100, rng=np.random.default_rng(0))
    energies = []
    dynamics = VelocityVerlet(atoms, timestep=0.1 * units.fs)
    dynamics.attach(lambda: energies.append(atoms.get_total_energy()))
    dynamics.run(60)
    kinetic = atoms.get_kinetic_energy()
    assert np.ptp(energies) < 1e-3 * max(kinetic, 0.1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_positions_that_are_not_finite_are_refused(potential, bad):
    atoms = frame_to_atoms(structure("molecule", SPECIES))
    atoms.positions[1, 2] = bad
    atoms.calc = PimlipCalculator(potential)
    with pytest.raises(InputError, match="positions: a position or the cell is NaN or infinite"):
        atoms.get_potential_energy()


def test_an_element_that_the_potential_lacks_is_refused(potential):
    from ase import Atoms

    atoms = Atoms("N2", positions=[[0, 0, 0], [0, 0, 1.1]])
    atoms.calc = PimlipCalculator(potential)
    with pytest.raises(InputError, match="does not know N"):
        atoms.get_potential_energy()


def test_a_negative_skin_is_refused(potential):
    with pytest.raises(InputError, match="skin"):
        PimlipCalculator(potential, skin=-0.1)
