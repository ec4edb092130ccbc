"""TorchScript files in what nequip brings for other programs; where nequip or torch-sim are not installed, skipped."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from pimlip_zoo.deploy.ase import PimlipCalculator
from pimlip_zoo.deploy.torchscript import export_torchscript
from pimlip_zoo.models.allegro import Allegro, AllegroConfig
from pimlip_zoo.models.mace import MACE, MACEConfig
from pimlip_zoo.models.nequip import NequIP, NequIPConfig
from pimlip_zoo.models.potential import Potential

SPECIES = ("H", "C", "O", "Cu")
SMALL = {"l_max": 1, "cutoff": 4.0, "avg_num_neighbors": 10.0, "num_bessel": 4}
MODELS = {
    "nequip": lambda: NequIP(NequIPConfig(num_layers=2, channels=4, **SMALL), SPECIES),
    "allegro": lambda: Allegro(
        AllegroConfig(num_layers=2, scalar_channels=4, tensor_channels=2, **SMALL), SPECIES
    ),
    "mace": lambda: MACE(MACEConfig(channels=4, correlation=2, **SMALL), SPECIES),
}


def rattled(atoms, seed=0):
    atoms.rattle(0.1, seed=seed)
    return atoms


def skewed():
    atoms = bulk("Cu", "fcc", a=3.6) * (1, 2, 1)
    atoms.set_cell(np.array(atoms.cell) @ [[1, 0.2, 0.1], [0, 1, 0.3], [0, 0, 1]], scale_atoms=True)
    return rattled(atoms, 1)


@pytest.fixture(scope="module", params=sorted(MODELS))
def made(request, tmp_path_factory):
    """A potential and its file."""
    torch.manual_seed(0)
    references = torch.arange(len(SPECIES), dtype=torch.float64)
    potential = Potential(MODELS[request.param](), energy_references=references)
    potential = potential.set_dtype(torch.float64).eval()
    path = tmp_path_factory.mktemp("files") / f"{request.param}.nequip.pth"
    return potential, export_torchscript(potential, path, name=request.param).path


@pytest.mark.parametrize(
    "atoms", [rattled(molecule("CH3CH2OH")), skewed(), Atoms("Cu", cell=[20, 20, 20], pbc=True)], ids=str
)
def test_the_ase_calculator_of_nequip_computes_what_ours_does(made, atoms):
    ase = pytest.importorskip("nequip.integrations.ase")
    potential, path = made
    theirs = ase.NequIPCalculator.from_compiled_model(path, device="cpu", neighborlist_backend="ase")
    expected = PimlipCalculator(potential)
    names = ["energy", "energies", "forces", *(["stress"] if atoms.pbc.all() else [])]
    for name in names:
        np.testing.assert_allclose(
            theirs.get_property(name, atoms), expected.get_property(name, atoms), rtol=0, atol=1e-9
        )


def test_the_torch_sim_model_of_nequip_computes_what_ours_does(made):
    ts = pytest.importorskip("torch_sim")
    theirs = pytest.importorskip("nequip.integrations.torchsim").NequIPTorchSimCalc
    from pimlip_zoo.deploy.torchsim import TorchSimModel

    potential, path = made
    structures = [rattled(bulk("Cu", "fcc", a=3.6, cubic=True)), skewed()]
    state = ts.io.atoms_to_state(structures, torch.device("cpu"), torch.float64)
    found = theirs.from_compiled_model(path, device="cpu", neighborlist_backend="ase")(state)
    expected = TorchSimModel(potential)(state)
    for name in ("energy", "forces", "stress"):
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-9)
