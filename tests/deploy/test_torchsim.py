"""torch-sim gets what ASE gets, for many structures at once."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from pimlip_zoo.deploy.ase import PimlipCalculator
from pimlip_zoo.errors import InputError
from pimlip_zoo.models.nequip import NequIP, NequIPConfig
from pimlip_zoo.models.potential import Potential


def small_potential(species, dtype=torch.float64):
    torch.manual_seed(0)
    config = NequIPConfig(num_layers=2, l_max=1, channels=4, cutoff=4.0, avg_num_neighbors=10.0)
    references = torch.arange(len(species), dtype=torch.float64)
    return Potential(NequIP(config, species), energy_references=references).set_dtype(dtype).eval()


def rattled(atoms, seed=0):
    atoms.rattle(0.1, seed=seed)
    return atoms


def test_without_torch_sim_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_sim.models.interface", None)
    monkeypatch.delitem(sys.modules, "pimlip_zoo.deploy.torchsim", raising=False)
    with pytest.raises(InputError, match="pip install torch-sim-atomistic"):
        import pimlip_zoo.deploy.torchsim  # noqa: F401


def test_it_meets_torch_sims_own_contract():
    interface = pytest.importorskip("torch_sim.models.interface")
    from pimlip_zoo.deploy.torchsim import TorchSimModel

    for compute_stress in (True, False):
        model = TorchSimModel(
            small_potential(("Si", "Fe", "Ar", "Mg", "Sb", "Ti")), compute_stress=compute_stress
        )
        interface.validate_model_outputs(model, torch.device("cpu"), torch.float64)


def test_structures_of_a_batch_get_the_energy_forces_and_stress_of_the_ase_calculator():
    ts = pytest.importorskip("torch_sim")
    from pimlip_zoo.deploy.torchsim import TorchSimModel

    skewed = bulk("Cu", "fcc", a=3.6) * (1, 2, 1)
    skewed.set_cell(np.array(skewed.cell) @ [[1, 0.2, 0.1], [0, 1, 0.3], [0, 0, 1]], scale_atoms=True)
    structures = [
        rattled(bulk("Cu", "fcc", a=3.6, cubic=True)),
        bulk("Al", "fcc", a=4.0),
        rattled(skewed, 1),
        Atoms("Cu", cell=[20, 20, 20], pbc=True),
    ]
    model = TorchSimModel(small_potential(("Cu", "Al")))
    results = model(ts.io.atoms_to_state(structures, torch.device("cpu"), torch.float64))
    start = 0
    for index, atoms in enumerate(structures):
        atoms.calc = PimlipCalculator(small_potential(("Cu", "Al")))
        end = start + len(atoms)
        assert results["energy"][index].item() == pytest.approx(atoms.get_potential_energy(), abs=1e-10)
        np.testing.assert_allclose(results["forces"][start:end], atoms.get_forces(), atol=1e-10)
        np.testing.assert_allclose(results["energies"][start:end], atoms.get_potential_energies(), atol=1e-10)
        np.testing.assert_allclose(results["stress"][index], atoms.get_stress(voigt=False), atol=1e-10)
        start = end


def test_molecules_without_a_cell_work_and_float32_is_returned_where_asked_for():
    ts = pytest.importorskip("torch_sim")
    from pimlip_zoo.deploy.torchsim import TorchSimModel

    atoms = [rattled(molecule("CH3CH2OH")), molecule("H2O")]
    model = TorchSimModel(small_potential(("H", "C", "O")), dtype=torch.float32, compute_stress=False)
    results = model(ts.io.atoms_to_state(atoms, torch.device("cpu"), torch.float32))
    assert results["forces"].dtype == torch.float32
    assert set(results) == {"energy", "forces", "energies"}
    atoms[0].calc = PimlipCalculator(small_potential(("H", "C", "O")))
    np.testing.assert_allclose(results["forces"][:9], atoms[0].get_forces(), atol=1e-5)


def test_lists_are_used_again_until_atoms_have_moved_and_when_structures_are_swapped():
    ts = pytest.importorskip("torch_sim")
    from pimlip_zoo.deploy.torchsim import TorchSimModel

    first, second = (
        rattled(bulk("Cu", "fcc", a=3.6, cubic=True)),
        rattled(bulk("Al", "fcc", a=4.0, cubic=True)),
    )
    model = TorchSimModel(small_potential(("Cu", "Al")))
    state = ts.io.atoms_to_state([first, second], torch.device("cpu"), torch.float64)
    energies = model(state)["energy"]
    model(state)
    assert [neighbours.builds for neighbours in model._neighbours] == [1, 1]
    swapped = model(ts.io.atoms_to_state([second, first], torch.device("cpu"), torch.float64))["energy"]
    torch.testing.assert_close(swapped, energies.flip(0), rtol=0, atol=1e-10)
    assert [neighbours.builds for neighbours in model._neighbours] == [2, 2]


def test_a_mapping_of_fields_is_taken_like_a_state_and_may_lack_the_index_of_the_structure():
    pytest.importorskip("torch_sim")
    from pimlip_zoo.deploy.torchsim import TorchSimModel

    atoms = rattled(bulk("Cu", "fcc", a=3.6, cubic=True))
    fields = {
        "positions": torch.as_tensor(atoms.positions),
        "cell": torch.as_tensor(np.array(atoms.cell).T)[None],
        "pbc": torch.tensor([True, True, True]),
        "atomic_numbers": torch.as_tensor(atoms.numbers),
    }
    energy = TorchSimModel(small_potential(("Cu",)))(fields)["energy"]
    atoms.calc = PimlipCalculator(small_potential(("Cu",)))
    assert energy.item() == pytest.approx(atoms.get_potential_energy(), abs=1e-10)


def test_torch_sims_runner_moves_each_structure_and_heats_it_as_told():
    ts = pytest.importorskip("torch_sim")
    from pimlip_zoo.deploy.torchsim import TorchSimModel

    structures = [
        rattled(bulk("Cu", "fcc", a=3.6, cubic=True)),
        rattled(bulk("Al", "fcc", a=4.0, cubic=True)),
    ]
    start = torch.as_tensor(np.concatenate([atoms.positions for atoms in structures]))
    model = TorchSimModel(small_potential(("Cu", "Al")))
    nve = ts.Integrator.nve if hasattr(ts, "Integrator") else ts.nve
    state = ts.integrate(structures, model, integrator=nve, n_steps=10, temperature=100.0, timestep=0.001)
    assert ((state.positions - start).norm(dim=1) > 1e-5).all()
    torch.testing.assert_close(state.forces, model(state)["forces"], rtol=0, atol=1e-10)
    torch.testing.assert_close(state.energy, model(state)["energy"], rtol=0, atol=1e-10)


def state_of_interleaved():
    """A state of two structures whose atoms are not side by side, and which is whose."""
    first, second = (
        rattled(bulk("Cu", "fcc", a=3.6, cubic=True)),
        rattled(bulk("Al", "fcc", a=4.0) * (1, 1, 2)),
    )
    owner = np.array([1, 0, 0, 1, 0, 0])
    numbers, positions = np.zeros(6, dtype=int), np.zeros((6, 3))
    for index, atoms in enumerate((first, second)):
        numbers[owner == index], positions[owner == index] = atoms.numbers, atoms.positions
    cells = np.array([np.array(atoms.cell).T for atoms in (first, second)])
    fields = {
        "positions": torch.as_tensor(positions),
        "cell": torch.as_tensor(cells),
        "pbc": torch.tensor([True, True, True]),
        "atomic_numbers": torch.as_tensor(numbers),
        "system_idx": torch.as_tensor(owner),
    }
    return fields, (first, second), owner


def test_atoms_of_structures_need_not_stand_side_by_side():
    pytest.importorskip("torch_sim")
    from pimlip_zoo.deploy.torchsim import TorchSimModel

    fields, structures, owner = state_of_interleaved()
    results = TorchSimModel(small_potential(("Cu", "Al")))(fields)
    for index, atoms in enumerate(structures):
        atoms.calc = PimlipCalculator(small_potential(("Cu", "Al")))
        assert results["energy"][index].item() == pytest.approx(atoms.get_potential_energy(), abs=1e-10)
        np.testing.assert_allclose(results["forces"][owner == index], atoms.get_forces(), atol=1e-10)
        energies = results["energies"][owner == index]
        np.testing.assert_allclose(energies, atoms.get_potential_energies(), atol=1e-10)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("system_idx", [1, 0, 0, 5, 0, 0], "beyond the 2"),
        ("system_idx", [1, 0, 0, -1, 0, 0], "beyond the 2"),
        ("system_idx", [1, 0], "2 of system_idx"),
        ("atomic_numbers", [13.0, 29.0, 29.0, 13.4, 29.0, 29.0], "atomic_numbers"),
        ("pbc", [[True] * 3] * 2, r"pbc: has the shape \(2, 3\)"),
        ("pbc", None, "pbc: is missing"),
        ("positions", [[0.0, 0, 0]] * 6, "system 0, positions: atoms 0 and 1 are on one spot"),
    ],
)
def test_fields_that_do_not_fit_are_refused(key, value, says):
    pytest.importorskip("torch_sim")
    from pimlip_zoo.deploy.torchsim import TorchSimModel

    fields, _, _ = state_of_interleaved()
    fields[key] = None if value is None else torch.tensor(value)
    with pytest.raises(InputError, match=says):
        TorchSimModel(small_potential(("Cu", "Al")))(fields)
