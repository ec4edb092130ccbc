"""Small potentials with every property that a pair style has to respect, and structures to try them on."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from torch import Tensor, nn

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.neighbours import frame_to_sample
from pimlip_zoo.deploy.lammps.input import in_lammps_axes
from pimlip_zoo.graph import AtomGraph
from pimlip_zoo.models.base import AtomicEnergyModel, ModelConfig
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.registry import available_models

SPECIES = ("H", "C", "O")
CUTOFF = 3.5


class Pairs(AtomicEnergyModel):
    """Strictly local and not symmetric in centre and neighbour: g_ij is not -g_ji."""

    interaction_depth = 1

    def __init__(self, config, species):
        super().__init__(config, species)
        generator = torch.Generator().manual_seed(1)
        self.weights = nn.Parameter(torch.rand(len(species), len(species), generator=generator))

    def forward(self, graph: AtomGraph, vectors: Tensor) -> Tensor:
        x = torch.linalg.vector_norm(vectors, dim=1) / self.cutoff
        strength = self.weights[graph.species[graph.edge_index[0]], graph.species[graph.edge_index[1]]]
        tilt = 1.0 + 0.3 * vectors[:, 0] * vectors[:, 1] / self.cutoff**2
        pairs = strength * tilt * (1.0 - x).clamp(min=0.0) ** 4
        energy = torch.zeros(graph.species.shape[0], dtype=pairs.dtype, device=pairs.device)
        return energy.index_add(0, graph.edge_index[0], pairs)


class Messages(AtomicEnergyModel):
    """Message passing of any depth; every hop matters, so that a halo that is too small shows."""

    def __init__(self, config, species, depth=2):
        super().__init__(config, species)
        self.interaction_depth = depth
        generator = torch.Generator().manual_seed(2)
        self.embedding = nn.Parameter(0.5 + torch.rand(len(species), generator=generator))

    def forward(self, graph: AtomGraph, vectors: Tensor) -> Tensor:
        centre, neighbour = graph.edge_index[0], graph.edge_index[1]
        x = torch.linalg.vector_norm(vectors, dim=1) / self.cutoff
        envelope = (1.0 - x).clamp(min=0.0) ** 4
        h = self.embedding[graph.species]
        for _ in range(self.interaction_depth):
            message = envelope * torch.sin(1.0 + h[neighbour] * h[centre])
            h = h + torch.zeros_like(h).index_add(0, centre, message)
        return h - self.embedding[graph.species]


class Morse(AtomicEnergyModel):
    """A metal that holds together: Morse pairs with the nearest-neighbour distance of copper."""

    interaction_depth = 1

    def __init__(self, config, species):
        super().__init__(config, species)
        self.depth_ev = nn.Parameter(torch.tensor(0.17))

    def forward(self, graph: AtomGraph, vectors: Tensor) -> Tensor:
        r = torch.linalg.vector_norm(vectors, dim=1)
        x = r / self.cutoff
        envelope = (1.0 - x**2).clamp(min=0.0) ** 3
        decay = torch.exp(-1.4 * (r - 2.7))
        pairs = self.depth_ev * (decay * decay - 2.0 * decay) * envelope
        energy = torch.zeros(graph.species.shape[0], dtype=pairs.dtype, device=pairs.device)
        return energy.index_add(0, graph.edge_index[0], pairs)


def potential_of(name: str, dtype: torch.dtype = torch.float64) -> Potential:
    """A toy by name (pairs, messages2, messages3, morse), or a registered architecture, small and untrained."""
    torch.manual_seed(0)
    references = torch.tensor([-1.0, -2.0, -3.0])
    config = ModelConfig(cutoff=CUTOFF)
    if name == "morse":
        return Potential(Morse(ModelConfig(cutoff=5.5), ("Cu", "Al"))).set_dtype(dtype)
    if name == "pairs":
        model: AtomicEnergyModel = Pairs(config, SPECIES)
    elif name.startswith("messages"):
        model = Messages(config, SPECIES, depth=int(name.removeprefix("messages")))
    else:
        name, _, head = name.partition(":")
        info = available_models()[name]
        options = {"channels": 4} if "channels" in info.config.__dataclass_fields__ else {}
        options |= {"force_head": "direct"} if head else {}
        model = info.model(info.configure("small", cutoff=CUTOFF, avg_num_neighbors=12.0, **options), SPECIES)
    return Potential(model, energy_references=references, scale=torch.tensor([1.0, 1.5, 0.5])).set_dtype(
        dtype
    )


def geometries() -> dict[str, Atoms]:
    """The five geometries in which pair styles go wrong, in LAMMPS' axes."""
    generator = np.random.default_rng(3)

    def prepared(atoms: Atoms, mixed: bool = True) -> Atoms:
        if mixed:
            atoms.symbols[:] = [SPECIES[k] for k in generator.integers(3, size=len(atoms))]
        atoms.positions += generator.normal(scale=0.08, size=(len(atoms), 3))
        return in_lammps_axes(atoms)

    skewed = bulk("Cu", "fcc", a=3.4) * (4, 3, 2)
    thin = bulk("Cu", "sc", a=2.0) * (1, 2, 5)
    thin.cell[2] += 0.3 * thin.cell[0] + 0.6 * thin.cell[1]
    return {
        "a molecule in a box": prepared(molecule("CH3CH2OH"), mixed=False),
        "a bulk crystal": prepared(bulk("Cu", "fcc", a=3.4, cubic=True) * (3, 2, 2)),
        "a slab": prepared(fcc111("Cu", (4, 4, 3), a=3.4, vacuum=None, periodic=False)),
        "a skewed triclinic cell": prepared(skewed),
        "a cell thinner than the cutoff": prepared(thin),
    }


def graph_of(atoms: Atoms, species=SPECIES, cutoff: float = CUTOFF) -> AtomGraph:
    frame = Frame(
        numbers=atoms.numbers.astype(np.int64),
        positions=atoms.positions.copy(),
        cell=np.array(atoms.cell),
        pbc=np.array(atoms.pbc),
    )
    return frame_to_sample(frame, species, cutoff).graph


def predict(potential: Potential, atoms: Atoms):
    """Energy, forces, virial and atomic energies of a potential, as numpy arrays."""
    with torch.no_grad():
        result = potential(graph_of(atoms, potential.species, potential.cutoff))
    return (
        result.energy.item(),
        result.forces.numpy(),
        result.virial[0].numpy(),
        result.atomic_energy.numpy(),
    )


def relative(found, expected) -> float:
    """Largest difference over the largest value; over 1e-3 where everything is smaller."""
    expected = np.asarray(expected)
    return float(np.abs(np.asarray(found) - expected).max() / max(np.abs(expected).max(), 1e-3))


def with_metadata(source, target, **changes):
    """A copy of an exported file with other metadata; None takes a key away."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for item in old.infolist():
            if item.filename.endswith("_metadata.json"):  # a compiled file has them together
                values = json.loads(old.read(item.filename)) | changes
                kept = {key: value for key, value in values.items() if value is not None}
                new.writestr(item.filename, json.dumps(kept))
                continue
            key = item.filename.rpartition("/extra/")[2] if "/extra/" in item.filename else None
            if key in changes:
                if changes[key] is not None:
                    new.writestr(item.filename, changes[key])
            else:
                new.writestr(item, old.read(item.filename))
    return target


def with_entry(source, target, name, change):
    """A copy of an archive with the content of one entry changed; None takes the entry away."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for item in old.infolist():
            content = old.read(item.filename)
            if item.filename != name:
                new.writestr(item, content)
            elif change is not None:
                new.writestr(item.filename, change(content))
    return target
