"""What calculators tell beside energies and forces: stresses of atoms, the elements that they know."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import PropertyNotImplementedError

from pimlip_zoo.deploy.ase import PimlipCalculator
from pimlip_zoo.deploy.committee import CommitteeCalculator
from pimlip_zoo.deploy.difference import with_baseline
from pimlip_zoo.deploy.native.calculator import NativeCalculator
from pimlip_zoo.deploy.native.export import export_native
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.nn.zbl import ZBL
from pimlip_zoo.registry import get_model


def potential(species=("Al", "Cu"), dtype=torch.float64):
    torch.manual_seed(0)
    info = get_model("nequip")
    config = info.configure(
        "small", channels=2, l_max=1, radial_hidden=(4,), cutoff=4.0, avg_num_neighbors=20.0
    )
    model = Potential(info.model(config, species), scale=0.7, repulsion=ZBL(species, cutoff=4.0))
    return model.set_dtype(dtype).eval()


@pytest.fixture(scope="module", params=["torch", "native"])
def calculator(request, tmp_path_factory):
    if request.param == "torch":
        return PimlipCalculator(potential())
    path = tmp_path_factory.mktemp("native") / "model.pimlip"
    export_native(potential(), path)
    return NativeCalculator(path)


def skewed():
    atoms = bulk("Cu", a=3.6) * (2, 1, 1)  # thinner than the cutoff
    atoms.symbols[0] = "Al"
    atoms.set_cell(atoms.cell.array @ [[1.0, 0.1, 0.0], [0.2, 1.1, 0.0], [0.0, -0.1, -1.0]], scale_atoms=True)
    atoms.rattle(0.1, seed=0)
    return atoms


@pytest.mark.compiler
def test_stresses_of_atoms_add_up_to_the_stress(calculator):
    atoms = skewed()
    atoms.calc = calculator
    stresses = atoms.get_stresses()
    assert stresses.shape == (2, 6)
    assert np.abs(stresses).max() > 1e-4
    np.testing.assert_allclose(stresses.sum(axis=0), atoms.get_stress(), atol=1e-14)


@pytest.mark.compiler
def test_an_atom_out_of_reach_of_the_others_has_no_stress_and_two_share_theirs(calculator):
    atoms = Atoms("AlCuCu", positions=[[0, 0, 0], [0, 0, 2.4], [9, 9, 9]], cell=[18, 18, 18], pbc=True)
    atoms.calc = calculator
    stresses = atoms.get_stresses()
    np.testing.assert_allclose(stresses[0], stresses[1], atol=1e-15)
    np.testing.assert_allclose(stresses[2], 0.0, atol=1e-15)
    # A pair has -F r / V, half of it for either atom.
    force = atoms.get_forces()[1, 2]
    np.testing.assert_allclose(stresses[0, 2], -0.5 * force * 2.4 / 18.0**3, atol=1e-14)


@pytest.mark.compiler
def test_without_a_volume_there_are_no_stresses(calculator):
    atoms = Atoms("AlCu", positions=[[0, 0, 0], [0, 0, 2.4]])
    atoms.calc = calculator
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_stresses()


@pytest.mark.compiler
def test_calculators_say_which_elements_they_know(calculator):
    assert calculator.allowed_atomic_numbers == {13, 29}
    other = PimlipCalculator(potential(("Ni", "Cu")))
    assert CommitteeCalculator([calculator, other]).allowed_atomic_numbers == {29}
    assert with_baseline(calculator, {None}).allowed_atomic_numbers == {13, 29}
    assert with_baseline(calculator, {"emt"}).allowed_atomic_numbers == {13, 29}
