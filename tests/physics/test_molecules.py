"""Vibrations, torsions, bonds and paths against what is known, or worked out by hand."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import add_adsorbate, fcc100, molecule
from ase.calculators.emt import EMT
from ase.optimize import BFGS
from ase.vibrations import Vibrations
from calculators import Repulsion, Springs

from pimlip_zoo.physics.molecule import bonds_of, in_one_piece, rotors, side_of

PEROXIDE = molecule("H2O2")  # O O H H
TURN = (2, 0, 1, 3)


def springs(**options):
    return Springs(PEROXIDE, TURN, **options)


def test_vibrations_are_those_of_ase(measured, tmp_path, value):
    atoms = molecule("N2")
    found = measured(EMT(), atoms, "vibrations")
    assert found["vibrations"]["status"] == "computed"
    atoms.calc = EMT()
    BFGS(atoms, logfile=None).run(fmax=1e-4)
    modes = Vibrations(atoms, name=str(tmp_path / "vib"), delta=0.005)
    modes.run()
    highest = max(modes.get_frequencies().real)
    assert value(found, "vibrations.frequencies") == pytest.approx([highest], rel=1e-4)
    assert value(found, "vibrations.zero_point_energy") == pytest.approx(
        modes.get_zero_point_energy(), abs=1e-3
    )


def test_a_molecule_has_3n_minus_6_vibrations_and_a_saddle_is_no_minimum(measured, value):
    found = measured(springs(height=0.2), PEROXIDE, "vibrations")["vibrations"]
    assert len(found["values"]["frequencies"]["value"]) == 6
    assert found["status"] == "computed", found["doubts"]
    saddle = measured(springs(height=-0.2), PEROXIDE, "vibrations")["vibrations"]
    assert saddle["status"] == "doubtful"
    assert any("1 imaginary frequency, " in doubt for doubt in saddle["doubts"])
    assert "zero_point_energy" not in saddle["values"]


def test_a_molecule_in_a_periodic_box_has_the_vibrations_of_a_free_one(measured, value):
    """Its images are out of reach; the box cuts it in two, and its turns are no vibrations there, either."""
    free = value(measured(springs(height=0.2), PEROXIDE, "vibrations"), "vibrations.frequencies")
    boxed = PEROXIDE.copy()
    boxed.center(vacuum=12.0)
    boxed.pbc = True
    cut = boxed.copy()
    cut.positions += 0.5 * cut.cell.sum(axis=0)
    cut.wrap()
    assert np.ptp(cut.positions, axis=0).max() > 20.0
    for box in (boxed, in_one_piece(cut)):
        assert np.ptp(in_one_piece(box).positions, axis=0).max() < 3.0
    found = measured(springs(height=0.2), boxed, "vibrations")["vibrations"]
    assert found["status"] == "computed", found["doubts"]
    assert found["values"]["frequencies"]["value"] == pytest.approx(free, rel=1e-4)


def test_a_molecule_that_a_skewed_box_cuts_is_put_together():
    atoms = molecule("CH3CH2OH", cell=[[12, 0, 0], [5, 11, 0], [-3, 2, 13]], pbc=(True, False, True))
    whole = atoms.get_all_distances()
    atoms.positions -= atoms.positions[0]
    atoms.wrap()
    assert not np.allclose(atoms.get_all_distances(), whole)
    again = in_one_piece(atoms)
    assert np.allclose(again.get_all_distances(), whole, atol=1e-9)
    assert not again.pbc.any()


def test_the_barrier_of_a_turn_is_the_one_of_its_cosine(measured, value):
    found = measured(springs(height=0.2), PEROXIDE, "torsions")["torsions"]
    (name,) = [each for each in found["values"] if each.startswith("barrier_")]
    assert found["status"] == "computed"
    # Of the springs only the one between the two that turn is left out: no other changes its length... but those of
    # second neighbours do not, either.
    assert found["values"][name]["value"] == pytest.approx(0.4, rel=1e-3)
    assert found["values"][name.replace("barrier", "force_mismatch")]["value"] < 5e-3


def test_a_jump_of_the_energy_along_a_bond_is_found(measured):
    smooth = measured(springs(height=0.2), PEROXIDE, "bonds")["bonds"]
    assert smooth["status"] == "computed", smooth["doubts"]
    assert max(row["value"] for name, row in smooth["values"].items() if name.startswith("jump")) < 1e-3
    broken = measured(springs(height=0.2, jump_at=1.7), PEROXIDE, "bonds")["bonds"]
    assert broken["status"] == "doubtful"
    assert broken["values"]["jump_O-O"]["value"] == pytest.approx(0.3, rel=0.01)
    assert "jumps by 300 meV" in " ".join(broken["doubts"])


def test_a_molecule_that_falls_apart_has_no_properties(measured):
    found = measured(Repulsion(), molecule("H2O"), "vibrations", "bonds", "torsions")
    assert found["torsions"]["status"] == "not applicable"
    for name in ("vibrations", "bonds"):
        assert found[name]["status"] == "failed"
        assert "falls apart" in found[name]["reason"] or "does not relax" in found[name]["reason"]


def test_rotors_are_bonds_between_atoms_with_more_neighbours_outside_of_rings():
    ethanol = molecule("CH3CH2OH")
    axes = {frozenset((ethanol.symbols[b], ethanol.symbols[c])) for _, b, c, _ in rotors(ethanol)}
    assert len(rotors(ethanol)) == 2
    assert axes == {frozenset(("C",)), frozenset(("C", "O"))}
    assert rotors(molecule("C6H6")) == []
    assert rotors(molecule("H2O")) == []
    assert rotors(molecule("C2H2")) == []  # on a line
    assert side_of(bonds_of(ethanol), 0, 1) | side_of(bonds_of(ethanol), 1, 0) == set(range(9))


def hollow(place):
    slab = fcc100("Cu", (2, 2, 2), vacuum=6)
    add_adsorbate(slab, "Cu", 1.7, "hollow", offset=place)
    slab.pbc = (True, True, False)
    return slab


def test_a_hop_on_a_surface_has_the_barrier_of_its_bridge(measured):
    settings = [("neb.images", 3), ("neb.fmax", 0.02)]
    found = measured(EMT(), hollow((0, 0)), "neb", end=hollow((1, 0)), settings=settings)["neb"]
    assert found["status"] == "computed", found["doubts"]
    assert found["values"]["reaction_energy"]["value"] == pytest.approx(0, abs=2e-3)
    assert found["values"]["barrier"]["value"] == pytest.approx(
        found["values"]["barrier_back"]["value"], abs=2e-3
    )
    energies = []
    for position in ("hollow", "bridge"):  # symmetry keeps the atom on the bridge
        slab = fcc100("Cu", (2, 2, 2), vacuum=6)
        add_adsorbate(slab, "Cu", 1.8, position)
        slab.pbc = (True, True, False)
        slab.calc = EMT()
        BFGS(slab, logfile=None).run(fmax=0.01)
        energies.append(slab.get_potential_energy())
    assert found["values"]["barrier"]["value"] == pytest.approx(energies[1] - energies[0], abs=5e-3)


def test_two_structures_of_one_minimum_have_no_path(measured):
    first, second = molecule("N2"), molecule("N2")
    second.positions[0, 2] += 0.05
    found = measured(EMT(), first, "neb", end=second)["neb"]
    assert found["status"] == "failed"
    assert "one minimum" in found["reason"]


def test_a_path_that_is_cut_short_is_not_called_relaxed(measured):
    settings = [("neb.images", 3), ("neb.steps", 2)]
    found = measured(EMT(), hollow((0, 0)), "neb", end=hollow((1, 0)), settings=settings)["neb"]
    assert found["status"] == "doubtful"
    assert any("path is not relaxed" in doubt for doubt in found["doubts"])


def test_atoms_alone_have_no_bonds(measured):
    atoms = Atoms("N2", positions=[[0, 0, 0], [0, 0, 9.0]])
    found = measured(EMT(), atoms, "bonds")["bonds"]
    assert found["status"] == "failed"
