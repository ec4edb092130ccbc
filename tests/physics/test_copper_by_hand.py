"""The properties of copper are those that ASE's EMT calculator has when each is worked out by hand."""

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, fcc111, make_supercell
from ase.calculators.emt import EMT
from ase.optimize import BFGS
from calculators import Single
from scipy.optimize import minimize_scalar

CRYSTAL = ("lattice", "equation_of_state", "elastic", "vacancy", "surfaces")


def energy(atoms):
    atoms.calc = EMT()
    return atoms.get_potential_energy()


def second_derivative(cell_of, step=2e-3):
    """Of the energy per volume, by strain, in GPa."""
    values = [energy(cell_of(strain)) for strain in (-step, 0.0, step)]
    return (values[0] - 2 * values[1] + values[2]) / step**2 / cell_of(0.0).get_volume() / units.GPa


def strained(a, shape):
    def cell_of(strain):
        atoms = bulk("Cu", "fcc", a=a, cubic=True)
        atoms.set_cell(
            np.array(atoms.cell) @ (np.eye(3) + strain * np.array(shape, dtype=float)), scale_atoms=True
        )
        return atoms

    return cell_of


@pytest.fixture(scope="module")
def copper(measured):
    return measured(EMT(), bulk("Cu"), *CRYSTAL)


@pytest.fixture(scope="module")
def rest():
    """The lattice constant from energies alone."""
    return minimize_scalar(
        lambda a: energy(bulk("Cu", "fcc", a=a)), bracket=(3.5, 3.6, 3.7), options={"xtol": 1e-9}
    ).x


def test_lattice_constant(copper, rest, value):
    assert value(copper, "lattice.a") == pytest.approx(rest, abs=2e-5)
    assert value(copper, "lattice.volume") == pytest.approx(rest**3 / 4, rel=2e-5)
    assert value(copper, "lattice.energy") == pytest.approx(energy(bulk("Cu", a=rest)), abs=1e-8)
    assert copper["lattice"]["status"] == "computed"


def test_bulk_modulus_of_the_equation_of_state(copper, rest, value):
    scaled = strained(rest, np.eye(3))
    by_hand = second_derivative(scaled) / 9
    assert value(copper, "equation_of_state.bulk_modulus") == pytest.approx(by_hand, rel=3e-3)
    assert value(copper, "equation_of_state.volume") == pytest.approx(rest**3 / 4, rel=1e-4)


def test_elastic_constants(copper, rest, value):
    c11 = second_derivative(strained(rest, np.diag([1, 0, 0])))
    both = second_derivative(strained(rest, np.diag([1, 1, 0])))  # 2 C11 + 2 C12
    shear = second_derivative(strained(rest, [[0, 0.5, 0], [0.5, 0, 0], [0, 0, 0]]))
    assert value(copper, "elastic.C11") == pytest.approx(c11, rel=2e-3)
    assert value(copper, "elastic.C12") == pytest.approx(both / 2 - c11, rel=4e-3)
    assert value(copper, "elastic.C44") == pytest.approx(shear, rel=2e-3)


def test_cubic_relations(copper, value):
    c11, c12, c44 = (value(copper, f"elastic.{name}") for name in ("C11", "C12", "C44"))
    assert value(copper, "elastic.bulk_modulus") == pytest.approx((c11 + 2 * c12) / 3, rel=1e-9)
    assert value(copper, "equation_of_state.bulk_modulus") == pytest.approx((c11 + 2 * c12) / 3, rel=3e-3)
    assert value(copper, "elastic.lowest_eigenvalue") == pytest.approx(min(c11 - c12, c44), rel=1e-6)
    tensor = np.array(copper["elastic"]["series"]["tensor"])
    expected = np.diag([c11 - c12] * 3 + [c44] * 3)
    expected[:3, :3] += c12
    np.testing.assert_allclose(tensor, expected, atol=1e-3)


def test_vacancy(copper, rest, value):
    whole = bulk("Cu", "fcc", a=rest, cubic=True).repeat(3)
    perfect = energy(whole)
    without = whole.copy()
    del without[17]
    unrelaxed = energy(without)
    BFGS(without, logfile=None).run(fmax=1e-3)
    relaxed = without.get_potential_energy()
    assert value(copper, "vacancy.unrelaxed_energy") == pytest.approx(
        unrelaxed - 107 / 108 * perfect, abs=1e-4
    )
    assert value(copper, "vacancy.formation_energy") == pytest.approx(relaxed - 107 / 108 * perfect, abs=1e-3)


def test_surfaces(copper, rest, value):
    slab = fcc111("Cu", (1, 1, 7), a=rest, vacuum=8)
    slab.pbc = (True, True, False)
    area = np.linalg.norm(np.cross(slab.cell[0], slab.cell[1]))
    cut = (energy(slab) - 7 * energy(bulk("Cu", a=rest))) / 2 / area / units.J * 1e20
    assert value(copper, "surfaces.unrelaxed_111") == pytest.approx(cut, rel=1e-4)
    assert 0.95 * cut < value(copper, "surfaces.energy_111") <= cut
    order = [value(copper, f"surfaces.energy_{plane}") for plane in ("111", "100", "110")]
    assert order == sorted(order)


@pytest.fixture(scope="module")
def lattice_dynamics(measured):
    return measured(EMT(), bulk("Cu"), "phonons", settings=[("phonons.width", 8.0)])


def frozen(rest, direction, step=0.01):
    """THz at X: neighbouring (001) planes move against each other."""
    atoms = bulk("Cu", "fcc", a=rest, cubic=True).repeat((2, 2, 2))
    pattern = np.cos(2 * np.pi * atoms.positions[:, 2] / rest).round()
    atoms.positions += step * pattern[:, None] * np.array(direction)
    atoms.calc = EMT()
    pull = -(atoms.get_forces() @ np.array(direction) * pattern).mean() / step
    return np.sqrt(pull / atoms.get_masses()[0]) * units.s * 1e-12 / 2 / np.pi


def test_phonons_at_x_are_those_of_frozen_displacements(lattice_dynamics, rest, value):
    longitudinal, transverse = frozen(rest, [0, 0, 1]), frozen(rest, [1, 0, 0])
    expected = [transverse, transverse, longitudinal]
    np.testing.assert_allclose(value(lattice_dynamics, "phonons.frequencies_X"), expected, rtol=3e-3)


def test_the_acoustic_sum_rule_holds_and_the_crystal_is_stable(lattice_dynamics, value):
    phonons = lattice_dynamics["phonons"]
    assert phonons["status"] == "computed", phonons
    assert value(lattice_dynamics, "phonons.acoustic_residual") < 0.01
    assert value(lattice_dynamics, "phonons.lowest") > -1e-3
    at_gamma = np.array(phonons["series"]["bands"])[0]
    np.testing.assert_allclose(at_gamma, 0, atol=1e-3)
    # Dulong and Petit, less what is frozen at 300 K.
    assert 2.7 < value(lattice_dynamics, "phonons.heat_capacity_300K") < 3


def rotation(seed):
    from scipy.spatial.transform import Rotation

    return Rotation.random(random_state=seed).as_matrix()


def skewed():
    atoms = make_supercell(bulk("Cu"), [[1, 2, 0], [0, 1, 3], [0, 0, 1]])
    atoms.set_cell(np.array(atoms.cell) @ rotation(3), scale_atoms=True)
    atoms.positions += 0.37
    return atoms


@pytest.mark.parametrize(
    "atoms", [skewed(), bulk("Cu", cubic=True), bulk("Cu", a=3.75)], ids=["skewed", "cubic", "far"]
)
def test_the_same_whatever_cell_was_given(measured, copper, value, atoms):
    other = measured(EMT(), atoms, "lattice", "elastic")
    assert value(other, "lattice.a") == pytest.approx(value(copper, "lattice.a"), abs=3e-5)
    assert value(other, "lattice.energy") == pytest.approx(value(copper, "lattice.energy"), abs=1e-7)
    for name in ("C11", "C12", "C44", "bulk_modulus"):
        assert value(other, f"elastic.{name}") == pytest.approx(value(copper, f"elastic.{name}"), rel=1e-3)


def test_a_supercell_with_shaken_atoms_is_reduced_to_its_crystal(measured, copper, value):
    pytest.importorskip("spglib")
    atoms = bulk("Cu", cubic=True).repeat((2, 2, 1))
    atoms.rattle(0.05, seed=1)
    other = measured(EMT(), atoms, "lattice", "elastic")
    assert value(other, "lattice.a") == pytest.approx(value(copper, "lattice.a"), abs=1e-4)
    assert value(other, "elastic.C44") == pytest.approx(value(copper, "elastic.C44"), rel=3e-3)


def test_single_precision_gives_the_same_to_its_noise(measured, copper, value):
    single = measured(Single(), bulk("Cu"), "lattice", "equation_of_state", "elastic")
    assert {one["status"] for one in single.values()} == {"computed"}
    assert value(single, "lattice.a") == pytest.approx(value(copper, "lattice.a"), abs=1e-4)
    assert value(single, "equation_of_state.bulk_modulus") == pytest.approx(
        value(copper, "equation_of_state.bulk_modulus"), rel=3e-3
    )
    for name in ("C11", "C12", "C44"):
        assert value(single, f"elastic.{name}") == pytest.approx(value(copper, f"elastic.{name}"), rel=2e-3)


def test_heavy_atoms_have_lower_phonons_with_phonopy_too(rest):
    pytest.importorskip("phonopy")
    from pimlip_zoo.physics.phonons import by_phonopy

    points = np.array([[0.5, 0.5, 0.0], [0.1, 0.0, 0.2]])
    atoms: Atoms = bulk("Cu", a=rest)
    usual = by_phonopy(atoms, EMT(), (3, 3, 3), 0.01)[0](points)
    atoms.set_masses(4.0 * atoms.get_masses())
    heavy = by_phonopy(atoms, EMT(), (3, 3, 3), 0.01)[0](points)
    np.testing.assert_allclose(heavy, usual / 2.0, rtol=1e-9)


def test_isotopes_are_other_atoms_of_a_crystal():
    pytest.importorskip("spglib")
    from pimlip_zoo.physics.crystal import primitive

    atoms = bulk("Cu", cubic=True)
    assert len(primitive(atoms)) == 1
    atoms.set_masses([63.0, 65.0, 65.0, 65.0])
    small = primitive(atoms)
    assert sorted(small.get_masses()) == [63.0, 65.0, 65.0, 65.0]
    heavy = bulk("Cu", cubic=True)
    heavy.set_masses([65.0] * 4)
    assert primitive(heavy).get_masses().tolist() == [65.0]


def test_phonopy_and_ase_agree(rest):
    pytest.importorskip("phonopy")
    from pimlip_zoo.physics.phonons import by_ase, by_phonopy

    points = np.array([[0.5, 0.5, 0.0], [0.5, 0.5, 0.5], [0.1, 0.0, 0.2]])
    atoms: Atoms = bulk("Cu", a=rest)
    both = by_phonopy(atoms, EMT(), (4, 4, 4), 0.01), by_ase(atoms, EMT(), (4, 4, 4), 0.01)
    for one, other in zip(*both, strict=True):
        np.testing.assert_allclose(np.sort(one(points)), np.sort(other(points)), atol=0.01)
