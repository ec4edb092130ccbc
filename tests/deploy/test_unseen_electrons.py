"""A charge or spin that is stated to a model that does not see it is said, once."""

import copy
import logging

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.lj import LennardJones

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.lmdb import FrameStore, write_store
from pimlip_zoo.datasets.store_frames import StoredFrames
from pimlip_zoo.datasets.unseen import unseen_in_frames
from pimlip_zoo.deploy.ase import PimlipCalculator
from pimlip_zoo.deploy.committee import CommitteeCalculator
from pimlip_zoo.deploy.difference import with_baseline
from pimlip_zoo.evaluation import evaluate
from pimlip_zoo.experiment.data import several_electrons
from pimlip_zoo.files import write_text
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.registry import get_model
from pimlip_zoo.weak_labels.calculators import CheapCalculator

PLACES = np.array([[0.0, 0.0, 0.1], [1.08, 0.0, 0.0], [-0.54, 0.93, 0.0], [-0.5, -0.95, 0.1]])


def potential(seed=0, **options):
    torch.manual_seed(seed)
    info = get_model("nequip")
    small = {"num_layers": 1, "channels": 4, "l_max": 1, "radial_hidden": (4,), "num_bessel": 3}
    return Potential(
        info.model(info.configure("small", **small, avg_num_neighbors=3.0, **options), ("C", "H")).double()
    )


@pytest.fixture(scope="module")
def plain():
    return potential()


def methyl(calculator, **info):
    atoms = Atoms("CH3", PLACES, calculator=calculator)
    atoms.info.update(info)
    return atoms


def said(caplog):
    found = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    caplog.clear()
    return found


@pytest.mark.parametrize(
    ("info", "named"),
    [
        ({"charge": 1}, "charge +1, multiplicity 1"),
        ({"total_charge": -1}, "charge -1"),
        ({"multiplicity": 4}, "charge 0, multiplicity 4"),
        ({"charge": 0, "spin": 4}, "multiplicity 4"),
        ({"Charge": 0.5}, "Charge 0.5"),
        ({"charge": 1, "multiplicity": 2}, "charge 1, multiplicity 2"),  # impossible, and unseen as well
    ],
)
def test_a_charge_that_the_model_does_not_see_is_said_once(plain, caplog, info, named):
    atoms = methyl(PimlipCalculator(plain), **info)
    atoms.get_potential_energy()
    (line,) = said(caplog)
    assert named in line
    assert "does not see it" in line
    atoms.rattle(0.01)
    atoms.get_forces()
    assert not said(caplog)


def test_it_is_said_of_charges_of_atoms_and_of_what_is_stated_after_an_evaluation(plain, caplog):
    atoms = methyl(PimlipCalculator(plain))
    before = atoms.get_potential_energy()
    assert not said(caplog)
    atoms.info["charge"] = 1
    assert atoms.get_potential_energy() == before
    assert "charge +1" in said(caplog)[0]
    atoms = methyl(PimlipCalculator(plain))
    atoms.set_initial_charges([-1.0, 0.0, 0.0, 0.0])
    atoms.get_potential_energy()
    assert "charge -1" in said(caplog)[0]


def test_nothing_is_said_of_what_changes_nothing(plain, caplog):
    neutral = [
        methyl(None),
        methyl(None, charge=0),
        methyl(None, charge=0, multiplicity=2),
        methyl(None, charge=None, note="charge +1"),
    ]
    partial = methyl(None)
    partial.set_initial_charges([-0.3, 0.2, 0.2, 0.2])
    magnet = methyl(None)
    magnet.set_initial_magnetic_moments([3.0, 0, 0, 0])
    magnet.cell, magnet.pbc = np.eye(3) * 9, True
    for atoms in (*neutral, partial, magnet):
        atoms.calc = PimlipCalculator(plain)
        atoms.get_potential_energy()
    ion = methyl(PimlipCalculator(potential(embed_charge=True)), charge=1)
    ion.get_potential_energy()
    assert not said(caplog)


def test_a_model_for_one_charge_says_what_is_of_another(caplog):
    fixed = potential(embed_charge=True).with_electrons(1, 1)
    methyl(PimlipCalculator(fixed), charge=1).get_potential_energy()
    methyl(PimlipCalculator(fixed)).get_potential_energy()  # states nothing
    assert not said(caplog)
    methyl(PimlipCalculator(fixed), charge=-1).get_potential_energy()
    assert "exported for charge +1, multiplicity 1 alone" in said(caplog)[0]


def test_a_committee_and_copies_say_it_once(plain, caplog):
    atoms = methyl(CommitteeCalculator([PimlipCalculator(plain), PimlipCalculator(potential(1))]), charge=1)
    atoms.get_potential_energy()
    assert len(said(caplog)) == 1
    again = copy.deepcopy(atoms)
    again.rattle(0.01)
    again.get_potential_energy()
    assert not said(caplog)


def test_a_charge_that_is_changed_in_info_reaches_committees_and_sums(monkeypatch):
    first, second = (potential(seed, embed_charge=True) for seed in (0, 1))
    atoms = methyl(CommitteeCalculator([PimlipCalculator(first), PimlipCalculator(second)]))
    neutral = atoms.get_potential_energy()
    atoms.info["charge"] = 1
    charged = atoms.get_potential_energy()
    assert abs(charged - neutral) > 1e-6
    fresh = CommitteeCalculator([PimlipCalculator(first), PimlipCalculator(second)])
    assert charged == pytest.approx(methyl(fresh, charge=1).get_potential_energy(), abs=1e-12)
    found = CheapCalculator("lj", "1", LennardJones)
    monkeypatch.setattr("pimlip_zoo.deploy.difference.find_cheap_calculator", lambda *_, **__: found)
    atoms = methyl(with_baseline(PimlipCalculator(first), {"lj"}))
    neutral = atoms.get_potential_energy()
    atoms.info["charge"] = 1
    assert atoms.get_potential_energy() - neutral == pytest.approx(
        methyl(PimlipCalculator(first), charge=1).get_potential_energy()
        - methyl(PimlipCalculator(first)).get_potential_energy(),
        abs=1e-9,
    )
    atoms.info["charge"] = 0
    assert atoms.get_potential_energy() == pytest.approx(neutral, abs=1e-12)


def ion(**info):
    return Frame(np.array([6, 1, 1, 1]), PLACES, energy=-1.0, info=info)


def test_evaluation_says_it_of_the_data(plain, tmp_path, caplog):
    text = "2\nProperties=species:S:1:pos:R:3 energy=-1.0{}\nC 0 0 0\nH 0 0 1.1\n"
    write_text(tmp_path / "ions.xyz", text.format("") + text.format(" charge=-1") * 2)
    evaluate(plain, str(tmp_path / "ions.xyz"))
    (line,) = said(caplog)
    assert "ions.xyz: 2 of 3 structures state a charge" in line
    assert "(charges -1)" in line
    evaluate(plain, str(tmp_path / "ions.xyz") + "@0:1")
    assert not said(caplog)


def test_data_from_a_store_are_looked_at_as_those_in_memory(tmp_path):
    frames = [ion(), ion(charge=1), ion(multiplicity=4)]
    write_store(tmp_path / "a.lmdb", frames)
    write_store(tmp_path / "b.lmdb", frames[:1])
    stored, none = (StoredFrames(FrameStore(tmp_path / name)) for name in ("a.lmdb", "b.lmdb"))
    assert unseen_in_frames(stored) == unseen_in_frames(frames)
    assert "2 of 3 structures" in unseen_in_frames(frames)
    assert "(charges 0, +1)" in unseen_in_frames(frames)
    assert unseen_in_frames(none) is unseen_in_frames([]) is None
    for neutral, ions in ((none, stored), (frames[:1], frames)):
        assert "of validation charge 0, charge +1" in several_electrons(neutral, embedded=False, valid=ions)
        assert several_electrons(neutral, embedded=False, valid=neutral) is None
        assert "several charges" in several_electrons(ions, embedded=False, valid=neutral)
    assert "all structures are of charge +1 (1)" in several_electrons(frames[1:2], embedded=False)
