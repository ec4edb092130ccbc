"""What a structure is, is found from it."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule, nanotube
from ase.calculators.emt import EMT

from pimlip_zoo.datasets.builtin import load_builtin
from pimlip_zoo.datasets.frame import frame_to_atoms
from pimlip_zoo.physics.choose import typical_structures
from pimlip_zoo.physics.examine import Examination, Subject, select
from pimlip_zoo.physics.kinds import bragg_order, find_kind


def boxed():
    atoms = molecule("CH3CH2OH", vacuum=6)
    atoms.pbc = True
    return atoms


def slab(periodic):
    atoms = fcc111("Cu", (2, 2, 4), vacuum=6)
    atoms.pbc = (True, True, periodic)
    return atoms


def tube():
    atoms = nanotube(4, 0, length=1, vacuum=8)
    atoms.pbc = (False, False, True)
    return atoms


def hot(temperature_like, size=3):
    atoms = bulk("Cu", cubic=True).repeat(size)
    atoms.rattle(temperature_like, seed=0)
    return atoms


def gas():
    rng = np.random.default_rng(0)
    return Atoms("Cu100", positions=rng.uniform(0, 11, (100, 3)), cell=[11, 11, 11], pbc=True)


@pytest.mark.parametrize(
    ("atoms", "kind"),
    [
        (Atoms("Cu"), "atom"),
        (molecule("H2O"), "molecule"),
        (boxed(), "molecule"),
        (slab(False), "slab"),
        (slab(True), "slab"),
        (tube(), "chain"),
        (bulk("Cu"), "crystal"),
        (bulk("NaCl", "rocksalt", a=5.64).repeat(3), "crystal"),
        (hot(0.15), "crystal"),
        (bulk("Cu", cubic=True).repeat((1, 1, 5)), "crystal"),
        (gas(), "liquid"),
    ],
)
def test_kind(atoms, kind):
    found, why = find_kind(atoms)
    assert found == kind, why
    assert why


def test_atoms_on_planes_scatter_in_phase_and_a_gas_does_not():
    assert bragg_order(hot(0.0)) == pytest.approx(1)
    assert bragg_order(hot(0.0, size=2)) == pytest.approx(1)
    assert bragg_order(hot(0.15)) == pytest.approx(
        np.exp(-((2 * np.pi * np.sqrt(3) / 3.61 * 0.15) ** 2)), rel=0.1
    )
    assert bragg_order(gas()) < 0.2


@pytest.mark.parametrize("name", ["bulk", "supercell", "slab", "random_alloy"])
def test_structures_of_the_built_in_set_are_what_their_label_says(name):
    frames = [frame for frame in load_builtin("cual-emt/train") if frame.info["config_type"] == name]
    expected = "slab" if name == "slab" else "crystal"
    assert {find_kind(frame_to_atoms(frame))[0] for frame in frames} == {expected}


def test_the_commonest_substances_of_data_are_what_is_measured():
    found = typical_structures(load_builtin("cual-emt/train"))
    assert sorted(found) == ["Al", "Cu"]
    assert all(find_kind(atoms)[0] == "crystal" and len(atoms) < 8 for atoms in found.values())
    (ethanol,) = typical_structures(load_builtin("ethanol-gfn2/train")).values()
    assert find_kind(ethanol)[0] == "molecule"
    assert typical_structures([]) == {}


def test_what_does_not_apply_is_said_with_its_reason():
    examination = Examination(EMT(), [Subject("N2", molecule("N2"))], select(None, []))
    reasons = {step.measured.name: step.reason for step in examination.steps}
    assert reasons["lattice"] == "for crystals only; this is a molecule"
    assert reasons["torsions"] == "there is no bond to turn about"
    assert "--to" in reasons["neb"]
    assert reasons["vibrations"] is None
    assert examination.kinds == {"N2": ("molecule", "not periodic")}


def test_costs_are_known_before_and_near_what_they_are():
    examination = Examination(
        EMT(), [Subject("Cu", bulk("Cu"))], select(["lattice", "equation_of_state", "elastic"], [])
    )
    result = examination.run()
    used = sum(one["evaluations"] for one in result["structures"]["Cu"]["properties"].values())
    assert used / 2 < examination.evaluations < 2 * used
    assert examination.seconds > 0
