"""Units and signs are found in sets in which no two structures are near each other."""

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.lj import LennardJones
from ase.collections import g2
from ase.neighborlist import natural_cutoffs, neighbor_list

from pimlip_zoo.datasets.audit import audit_surveys, survey_frames, survey_sample
from pimlip_zoo.datasets.audit.magnitudes import quick_agreement, stiffness_of_hydrogen, stress_agreement
from pimlip_zoo.datasets.builtin import load_builtin
from pimlip_zoo.datasets.frame import Frame

KCAL, HARTREE, BOHR = 0.0433641, 27.211386, 0.529177


def springs(atoms, rng):
    """A molecule whose bonds are springs of 30 eV/Å², distorted: energy and forces in closed form."""
    i, j, rest = neighbor_list("ijd", atoms, natural_cutoffs(atoms, mult=1.2))
    moved = atoms.copy()
    moved.positions += rng.normal(0, 0.06, moved.positions.shape)
    vectors = moved.positions[j] - moved.positions[i]
    length = np.linalg.norm(vectors, axis=1)
    forces = np.zeros((len(atoms), 3))
    np.add.at(forces, i, 30.0 * (length - rest)[:, None] * vectors / length[:, None])
    energy = 0.25 * 30.0 * float(np.sum((length - rest) ** 2)) - 30.0 * float(np.sum(atoms.numbers))
    return Frame(numbers=atoms.numbers, positions=moved.positions, energy=energy, forces=forces)


@pytest.fixture(scope="module")
def mixture():
    """One structure of each of many molecules: no two are near each other."""
    rng = np.random.default_rng(0)
    organic = [atoms for atoms in map(molecule, g2.names) if {1, 6} < {*atoms.numbers, 0} and len(atoms) > 4]
    chosen = {atoms.get_chemical_formula(): atoms for atoms in organic if {*atoms.numbers} <= {1, 6, 7, 8}}
    return [springs(atoms, rng) for atoms in chosen.values()]


@pytest.fixture(scope="module")
def liquid():
    """Dense argon, each structure from scratch."""
    rng, frames = np.random.default_rng(1), []
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3), axis=-1).reshape(-1, 3) * 3.7
    for _ in range(20):
        atoms = Atoms("Ar27", grid + rng.normal(0, 0.25, grid.shape), cell=[11.1] * 3, pbc=True)
        atoms.calc = LennardJones(sigma=3.4, epsilon=0.0104, rc=5.5, smooth=True)
        frames.append(
            Frame(
                numbers=atoms.numbers,
                positions=atoms.positions[rng.permutation(27)],
                cell=np.asarray(atoms.cell),
                pbc=np.ones(3, dtype=bool),
                energy=float(atoms.get_potential_energy()),
            )
        )
        frames[-1] = replace(
            frames[-1], positions=atoms.positions.copy(), forces=np.array(atoms.get_forces())
        )
    return frames


def refused(frames, **options):
    found = audit_surveys([survey_frames("train", frames)], **options)
    return {finding.code: finding.message for finding in found.findings if finding.severity == "refused"}


def scaled(frames, forces=1.0, energy=1.0):
    return [replace(f, forces=f.forces * forces, energy=f.energy * energy) for f in frames]


def test_a_clean_mixture_and_a_clean_liquid_are_not_refused(mixture, liquid):
    assert refused(mixture) == {}
    assert refused(liquid) == {}


@pytest.mark.parametrize(
    ("factor", "unit"), [(1 / KCAL, "kcal/mol/Å"), (BOHR / HARTREE, "Hartree/Bohr"), (96.485, "kJ/mol/Å")]
)
def test_forces_of_a_mixture_in_another_unit_are_found_by_bonds_to_hydrogen(mixture, factor, unit):
    found = refused(scaled(mixture, forces=factor))
    assert set(found) == {"force-unit"}
    assert unit in found["force-unit"]
    assert "hydrogen" in found["force-unit"]


def test_gradients_of_a_mixture_are_found_by_bonds_to_hydrogen(mixture):
    assert set(refused(scaled(mixture, forces=-1.0))) == {"force-sign"}


def test_the_stiffness_of_bonds_to_hydrogen_is_that_of_the_data(mixture):
    assert stiffness_of_hydrogen(mixture) == pytest.approx(30.0, rel=0.15)
    assert stiffness_of_hydrogen(load_builtin("ethanol-gfn2/train")[:100]) == pytest.approx(30.0, rel=0.2)
    assert stiffness_of_hydrogen(load_builtin("cual-emt/train")) is None
    assert stiffness_of_hydrogen([]) is None


def test_forces_of_a_liquid_in_another_unit_are_found_by_a_quick_model(liquid):
    found = refused(scaled(liquid, forces=1 / KCAL))
    assert set(found) == {"force-unit"}
    assert "forces in kcal/mol/Å" in found["force-unit"]
    assert "energies in Hartree" in refused(scaled(liquid, energy=1 / HARTREE))["force-unit"]
    assert set(refused(scaled(liquid, forces=-1.0))) == {"force-sign"}


def test_a_quick_model_of_the_forces_gives_the_energies_of_pairs(liquid):
    found = quick_agreement(liquid)
    assert found.ratio == pytest.approx(1.0, rel=0.05)
    assert found.correlation > 0.95
    assert quick_agreement(liquid[:5]) is None


def test_the_forces_of_a_metal_are_compared_with_its_energies():
    found = quick_agreement(load_builtin("cual-emt/train")[:80])
    assert 0.7 < found.ratio < 1.4  # units differ by factors of 1.9 and more


def test_absurd_forces_are_refused_where_no_atoms_are_close(liquid):
    apart = [replace(f, numbers=np.full(27, 10 + k % 2)) for k, f in enumerate(liquid[:8])]
    assert set(refused(scaled(apart, forces=3e4))) == {"force-magnitude"}


def test_atoms_in_another_unit_than_the_structures_are_refused(mixture):
    energies = {"H": -30.0 / HARTREE, "C": -180.0 / HARTREE, "N": -210.0 / HARTREE, "O": -240.0 / HARTREE}
    near = [replace(f, energy=-20.0 * len(f.numbers)) for f in mixture]
    assert set(refused(near, atom_energies=dict.fromkeys(energies, -1.0))) == {"references-wrong"}
    assert refused(near, atom_energies=dict.fromkeys(energies, -15.0)) == {}


def test_a_sample_of_a_large_set_knows_every_structure_that_is_in_the_test_set_too(mixture):
    rng = np.random.default_rng(3)
    many = [replace(f, positions=f.positions + rng.normal(0, 0.3, f.positions.shape)) for f in mixture * 20]
    train = survey_sample("train", many, atoms=500)
    test = survey_sample("test", [*mixture, many[1], many[317]])
    assert (len(train), train.total) == (100, len(many))
    (finding,) = [f for f in audit_surveys([train, test]).findings if f.code == "leakage"]
    assert finding.frames == (len(mixture), len(mixture) + 1)
    assert f"2 of {len(mixture) + 2} structures are also in train" in finding.message


def test_findings_of_a_sample_name_the_structures_of_the_set(mixture):
    forces = mixture[0].forces.copy()
    many = mixture * 20
    places = survey_sample("train", many, atoms=500).places
    forces[0] += 500.0
    many[int(places[7])] = replace(
        many[int(places[7])], forces=np.full_like(many[int(places[7])].forces, 400.0)
    )
    found = audit_surveys([survey_sample("train", many, atoms=500)])
    assert {f.frames for f in found.findings if f.code == "force-outliers"} == {(int(places[7]),)}


@pytest.fixture(scope="module")
def strained():
    """Nickel and silver in any proportion, strained and displaced: no two are near each other."""
    from ase.build import bulk
    from ase.calculators.emt import EMT

    rng, frames = np.random.default_rng(3), []
    for _ in range(16):
        atoms = bulk("Ni", cubic=True, a=rng.uniform(3.4, 3.8)) * (2, 2, 1)
        atoms.numbers[rng.random(len(atoms)) < rng.random()] = 47
        strain = rng.normal(0, 0.02, (3, 3))
        atoms.set_cell(atoms.cell @ (np.eye(3) + strain + strain.T), scale_atoms=True)
        atoms.positions += rng.normal(0, 0.08, atoms.positions.shape)
        atoms.calc = EMT()
        frames.append(
            Frame(
                atoms.numbers,
                atoms.positions,
                cell=np.array(atoms.cell),
                pbc=np.ones(3, dtype=bool),
                energy=atoms.get_potential_energy(),
                forces=atoms.get_forces(),
                stress=atoms.get_stress(voigt=False),
            )
        )
    return frames


def test_stress_with_the_other_sign_is_found_without_near_structures(strained):
    assert stress_agreement(strained) > 0.9
    assert not refused(strained)
    turned = [replace(frame, stress=-frame.stress) for frame in strained]
    assert stress_agreement(turned) == pytest.approx(-stress_agreement(strained), abs=1e-12)
    found = refused(turned)
    assert list(found) == ["stress-sign"]
    assert "wrong sign" in found["stress-sign"]


def test_few_structures_molecules_and_no_stress_at_all_say_nothing(strained, mixture):
    assert stress_agreement(strained[:11]) is None
    assert stress_agreement(mixture) is None
    assert stress_agreement([replace(frame, stress=np.zeros((3, 3))) for frame in strained]) is None


def test_the_stress_of_the_alloy_that_comes_with_the_package_has_its_sign():
    frames = [frame for frame in load_builtin("cual-emt/train") if len(frame.numbers) > 1][:60]
    assert stress_agreement(frames) > 0.9


def argon(widths, energy=1.0, forces=1.0):
    """Lennard-Jones crystals, each shaken by another width between the two: steep walls, pairs far apart."""
    rng = np.random.default_rng(0)
    sites = np.stack(np.meshgrid(*[np.arange(2.0)] * 3), axis=-1).reshape(-1, 3)
    basis = np.array([[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    sites = 5.3 * (sites[:, None] + basis).reshape(-1, 3)
    frames = []
    for _ in range(50):
        atoms = Atoms("Ar32", sites, cell=[10.6] * 3, pbc=True)
        atoms.positions += rng.uniform(*widths) * rng.normal(size=(32, 3))
        atoms.calc = LennardJones(sigma=3.4, epsilon=0.0104, rc=5.0 if widths[0] < widths[1] else 8.5)
        frames.append(
            Frame(
                atoms.numbers,
                atoms.positions,
                np.array(atoms.cell),
                atoms.pbc,
                energy=energy * float(atoms.get_potential_energy()),
                forces=forces * atoms.get_forces(),
            )
        )
    return frames


@pytest.mark.parametrize("widths", [(0.05, 0.5), (0.5, 0.5)])
def test_a_lennard_jones_crystal_with_steep_walls_raises_no_false_alarm(widths):
    """Its pairs of structures say 0.4 and 0.07 of the work: the forces bend too strongly between them."""
    codes = {finding.code for finding in audit_surveys([survey_frames("train", argon(widths))]).findings}
    assert "force-agrees" in codes
    assert not {"force-inconsistent", "force-unit", "force-sign"} & codes


@pytest.mark.parametrize(
    ("energy", "forces"), [(1.0, 0.0194469), (23.06, 1.0), (1.0, 23.06), (1.0, -1.0), (0.0367, 1.0)]
)
def test_wrong_units_and_signs_of_the_same_crystal_are_found(energy, forces):
    frames = argon((0.05, 0.5), energy, forces)
    found = audit_surveys([survey_frames("train", frames)]).findings
    refused = {finding.code for finding in found if finding.severity == "refused"}
    assert {"force-unit", "force-sign"} & refused, found
