"""Contexts of torch around a calculator change nothing of what it computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.build import bulk

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.neighbours import frames_to_batch
from pimlip_zoo.deploy.ase import PimlipCalculator
from pimlip_zoo.evaluation import evaluate_frames
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.registry import get_model
from pimlip_zoo.training.checkpoint import load_potential, save_potential

CONTEXTS = {
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "meta": lambda: torch.device("meta"),
    "no gradients": torch.no_grad,
}
SMALL = {
    "num_layers": 1,
    "channels": 4,
    "l_max": 1,
    "radial_hidden": (8,),
    "cutoff": 4.0,
    "avg_num_neighbors": 20.0,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    info = get_model("nequip")
    path = tmp_path_factory.mktemp("models") / "a.ckpt"
    save_potential(Potential(info.model(info.configure("small", **SMALL), ("Cu",))), path)
    return path


def evaluated(potential):
    atoms = bulk("Cu", cubic=True, a=3.61)
    atoms.rattle(0.1, seed=0)
    frame = Frame(
        atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, energy=0.0, forces=np.zeros((4, 3))
    )
    atoms.calc = PimlipCalculator(potential)
    energy, forces, stress = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
    errors = evaluate_frames(potential, [frame]).pairs
    return [
        np.array(energy),
        forces,
        stress,
        atoms.get_stresses(),
        errors["forces"][1],
        errors["energy_per_atom"][1],
    ]


@pytest.mark.parametrize("context", sorted(CONTEXTS))
def test_a_context_around_loading_and_evaluation_changes_nothing(saved, context):
    expected = evaluated(load_potential(saved))
    with CONTEXTS[context]():
        potential = load_potential(saved)
        inside = evaluated(potential)
    for found in (inside, evaluated(potential)):
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_potential_itself_differentiates_in_inference_mode(saved):
    potential = load_potential(saved)
    frame = Frame(np.array([29, 29]), np.array([[0.0, 0, 0], [0, 0, 2.3]]))
    expected = potential(frames_to_batch([frame], ("Cu",), 4.0).graph)
    with torch.inference_mode():
        found = potential(frames_to_batch([frame], ("Cu",), 4.0).graph)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    assert not found.energy.requires_grad
