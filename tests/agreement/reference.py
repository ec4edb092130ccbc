"""Reading the fixtures that the scripts in ``benchmarks/reference`` write."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.neighbours import frame_to_sample
from pimlip_zoo.graph import AtomGraph, stress_from_virial
from pimlip_zoo.models.potential import Potential

STRUCTURES = ("acetamide", "nitromethane", "pyridine", "crystal")


@dataclass(frozen=True)
class Reference:
    """One configuration of a reference package: its options, its weights, what it computed."""

    config: dict
    species: list[str]
    weights: dict[str, torch.Tensor]
    arrays: dict[str, np.ndarray]

    def graph(self, structure: str, cutoff: float) -> AtomGraph:
        """The structure as this package sees it."""
        keys = ("numbers", "positions", "cell", "pbc")
        frame = Frame(**{key: self.arrays[f"{structure}/{key}"] for key in keys})
        return frame_to_sample(frame, self.species, cutoff).graph

    @property
    def num_parameters(self) -> int:
        """How many trainable numbers the package's model has."""
        buffers = ("scales", "shifts")
        return sum(value.numel() for name, value in self.weights.items() if not name.endswith(buffers))

    def per_species(self, name: str) -> torch.Tensor:
        """A dictionary by chemical symbol as a tensor in the order of the species."""
        return torch.tensor([self.config[name][symbol] for symbol in self.species], dtype=torch.float64)


def load(name: str) -> Reference:
    """The fixture of that name."""
    with np.load(Path(__file__).parent / f"{name}.npz", allow_pickle=False) as stored:
        arrays = dict(stored)
    weights = {
        key.removeprefix("weights/"): torch.from_numpy(value)
        for key, value in arrays.items()
        if key.startswith("weights/")
    }
    return Reference(json.loads(str(arrays["config"])), arrays["species"].tolist(), weights, arrays)


def pair_cutoffs(reference: Reference) -> tuple[tuple[str, str, float], ...]:
    """nequip's nested dictionary of cutoffs as (centre, neighbour, Å)."""
    pairs = []
    for centre, entry in (reference.config.get("per_edge_type_cutoff") or {}).items():
        by_neighbour = entry if isinstance(entry, dict) else dict.fromkeys(reference.species, entry)
        pairs.extend((centre, neighbour, value) for neighbour, value in by_neighbour.items())
    return tuple(pairs)


def assert_agrees(
    potential: Potential,
    reference: Reference,
    structure: str,
    relative: float = 1e-8,
    electrons: tuple[int, int] | None = None,
) -> None:
    """Energy, forces, stress equal those of the package, relative to the largest value of each.

    Charge and multiplicity, if given, need not be possible for the structure.
    """
    graph = reference.graph(structure, potential.cutoff)
    if electrons is not None:
        state = torch.tensor([[electrons[0], electrons[1] - 1]], dtype=torch.float64)
        graph = graph._replace(electrons=state)
    predictions = potential(graph)
    values = {"energy": predictions.energy, "forces": predictions.forces}
    if f"{structure}/stress" in reference.arrays:
        values["stress"] = stress_from_virial(predictions.virial, graph.cell)[0]
    for key, value in values.items():
        expected = reference.arrays[f"{structure}/{key}"]
        got = value.detach().numpy().reshape(expected.shape)
        if key == "energy":
            # Energies of atoms apart are constants that would hide a disagreement of what the model computes.
            apart = float(potential.energy_references[graph.species].sum())
            got, expected = got - apart, expected - apart
        scale = np.abs(expected).max()
        assert scale > 1e-3
        np.testing.assert_allclose(got, expected, rtol=0, atol=relative * scale, err_msg=f"{structure} {key}")
