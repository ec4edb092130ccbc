"""Allegro's own properties; those of every architecture are the contract suite's business."""

from __future__ import annotations

import pytest
import torch
from e3nn import o3

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.neighbours import frame_to_sample
from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import AtomGraph, edge_vectors
from pimlip_zoo.models.allegro import Allegro, AllegroConfig, layer_irreps
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.registry import get_model

SPECIES = ("H", "C", "O")
SMALL = {
    "cutoff": 3.0,
    "avg_num_neighbors": 6.0,
    "scalar_channels": 8,
    "tensor_channels": 4,
    "embed_hidden": (6,),
    "latent_hidden": (6,),
    "readout_hidden": (6,),
}
VARIANTS = (
    {},
    {"parity": False, "l_max": 1},
    {"num_layers": 3, "update": "residual"},
    {"num_layers": 1, "l_max": 3},
    {"l_max": 0},
)


def make(**options: object) -> Allegro:
    torch.manual_seed(3)
    return Allegro(AllegroConfig(**{**SMALL, **options}), SPECIES).to(torch.float64)


def graph_of(positions: object, numbers: object, cell: object = None, cutoff: float = 3.0) -> AtomGraph:
    import numpy as np

    cell = np.zeros((3, 3)) if cell is None else np.asarray(cell, dtype=float)
    pbc = np.full(3, bool(cell.any()))
    frame = Frame(
        numbers=np.asarray(numbers), positions=np.asarray(positions, dtype=float), cell=cell, pbc=pbc
    )
    return frame_to_sample(frame, SPECIES, cutoff).graph


def cluster(atoms: int = 7, seed: int = 0) -> AtomGraph:
    """Atoms 1.5 Å apart, shaken."""
    generator = torch.Generator().manual_seed(seed)
    lattice = 1.5 * torch.tensor([[n % 2, n // 2 % 2, n // 4] for n in range(atoms)], dtype=torch.float64)
    shaken = lattice + 0.3 * torch.rand(atoms, 3, generator=generator, dtype=torch.float64)
    return graph_of(shaken.numpy(), numbers_of(atoms))


def numbers_of(atoms: int) -> list[int]:
    return [(1, 6, 8)[n % 3] for n in range(atoms)]


def moved(graph: AtomGraph, positions: torch.Tensor) -> AtomGraph:
    return graph._replace(positions=positions)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_an_atoms_energy_ignores_everything_beyond_the_cutoff(options: dict) -> None:
    model = make(**options)
    assert model.interaction_depth == 1
    # A chain: the third atom is a neighbour of the second, and out of reach of the first.
    chain = [[0.0, 0, 0], [2.0, 0.3, 0], [4.1, 0, 0.2]]
    graph = graph_of(chain, [1, 6, 8])
    assert graph.edge_index.shape[1] == 4
    vectors = edge_vectors(graph).requires_grad_(True)
    energy = model(graph, vectors)
    (gradient,) = torch.autograd.grad(energy[0], vectors)
    elsewhere = gradient[graph.edge_index[0] != 0]
    assert torch.equal(elsewhere, torch.zeros_like(elsewhere))
    assert gradient[graph.edge_index[0] == 0].abs().max() > 1e-6


def test_pairs_of_species_end_at_their_own_cutoff() -> None:
    model = make(species_cutoffs=(("H", "H", 2.0), ("C", "H", 2.5)))
    hydrogens = graph_of([[0, 0, 0], [2.2, 0, 0]], [1, 1])
    assert torch.equal(model(hydrogens, edge_vectors(hydrogens)), torch.zeros(2, dtype=torch.float64))
    # Ordered (centre, neighbour): carbon does not see a hydrogen at 2.6 Å that sees carbon.
    mixed = graph_of([[0, 0, 0], [2.6, 0, 0]], [6, 1])
    energy = model(mixed, edge_vectors(mixed)).detach()
    assert float(energy[0]) == 0.0
    assert abs(float(energy[1])) > 1e-9
    for centre, neighbour in (("H", "H"), ("C", "H"), ("O", "O")):
        end = {"HH": 2.0, "CH": 2.5, "OO": 3.0}[centre + neighbour]
        values = []
        for distance in (end - 1e-3, end - 1e-2):
            pair = graph_of(
                [[0, 0, 0], [distance, 0, 0]], [{"H": 1, "C": 6, "O": 8}[s] for s in (centre, neighbour)]
            )
            values.append(abs(float(model(pair, edge_vectors(pair)).detach()[0])))
        # The embedding ends as (1 - r / cutoff)^3, and the tensor products at least as fast.
        assert 0 < values[0] < 2e-3 * values[1]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_forces_are_the_derivative_of_the_energy(options: dict) -> None:
    potential = Potential(make(**options))
    graph = cluster(6)
    forces = potential(graph).forces
    step, numerical = 1e-5, torch.zeros_like(forces)
    for atom in range(6):
        for axis in range(3):
            ends = []
            for sign in (1, -1):
                positions = graph.positions.clone()
                positions[atom, axis] += sign * step
                near = graph_of(positions.numpy(), numbers_of(6))
                ends.append(float(potential(near, forces=False, virial=False).energy[0].detach()))
            numerical[atom, axis] = -(ends[0] - ends[1]) / (2 * step)
    assert forces.abs().max() > 1e-2
    torch.testing.assert_close(forces, numerical, rtol=0, atol=1e-7)


@pytest.mark.parametrize("determinant", [1, -1])
@pytest.mark.parametrize("options", VARIANTS[:3], ids=str)
def test_direct_forces_turn_with_the_structure_and_add_up_to_zero(options: dict, determinant: int) -> None:
    potential = Potential(make(force_head="direct", **options), scale=torch.full((3,), 1.7))
    graph = cluster(8, seed=4)
    matrix = determinant * o3.rand_matrix(dtype=torch.float64)
    forces = potential(graph, virial=False).forces
    turned = potential(moved(graph, graph.positions @ matrix.T), virial=False).forces
    assert forces.abs().max() > 1e-3
    torch.testing.assert_close(turned, forces @ matrix.T, rtol=0, atol=1e-10)
    torch.testing.assert_close(forces.sum(0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)


def test_odd_features_distinguish_mirror_images_nowhere_in_the_energy() -> None:
    for options in VARIANTS:
        potential = Potential(make(**options))
        graph = cluster(7, seed=2)
        matrix = -o3.rand_matrix(dtype=torch.float64)
        before, after = potential(graph), potential(moved(graph, graph.positions @ matrix.T))
        torch.testing.assert_close(after.energy, before.energy, rtol=0, atol=1e-10)
        torch.testing.assert_close(after.forces, before.forces @ matrix.T, rtol=0, atol=1e-10)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scripted_equals_eager_in_value_and_gradient(options: dict, dtype: torch.dtype) -> None:
    model = make(**options).to(dtype)
    scripted = torch.jit.script(model)
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    # Several calls: TorchScript derives its own gradients after it has seen some.
    for graph in (cluster(6), cluster(7), graph_of([[0.0, 0, 0]], [6]), cluster(8)):
        vectors = edge_vectors(graph).to(dtype).requires_grad_(True)
        energies = [each(graph, vectors) for each in (model, scripted)]
        torch.testing.assert_close(energies[1], energies[0], **tolerance)
        if graph.edge_index.shape[1] > 0:
            gradients = [torch.autograd.grad(energy.sum(), vectors)[0] for energy in energies]
            torch.testing.assert_close(gradients[1], gradients[0], **tolerance)


def test_the_scripted_direct_head_equals_the_eager_one() -> None:
    model = make(force_head="direct")
    graph = cluster(6)
    vectors = edge_vectors(graph)
    for ours, theirs in zip(
        model.energies_and_forces(graph, vectors),
        torch.jit.script(model).energies_and_forces(graph, vectors),
        strict=True,
    ):
        torch.testing.assert_close(theirs, ours, rtol=1e-12, atol=1e-12)


def test_an_atom_without_neighbours_has_its_reference_energy() -> None:
    references = torch.tensor([-1.0, -2.0, -3.0])
    for options in VARIANTS:
        predictions = Potential(make(**options), energy_references=references)(graph_of([[0.0, 0, 0]], [8]))
        assert float(predictions.energy[0].detach()) == -3.0
        assert predictions.forces.abs().max() == 0


def test_irreps_that_lead_nowhere_are_not_computed() -> None:
    two = layer_irreps(AllegroConfig(num_layers=2, l_max=2, parity=True))
    assert [str(irreps) for irreps in two] == ["1x0e+1x1o+1x2e", "1x0e+1x1o+1x2e", "1x0e"]
    three = layer_irreps(AllegroConfig(num_layers=3, l_max=2, parity=True))
    assert o3.Irrep("1e") in three[1]
    assert o3.Irrep("0o") not in three[1]
    natural = layer_irreps(AllegroConfig(num_layers=3, l_max=2, parity=False))
    assert natural[1] == o3.Irreps.spherical_harmonics(2)


@pytest.mark.parametrize(("preset", "count"), [("small", 62_688), ("medium", 281_024), ("large", 858_240)])
def test_presets_have_the_documented_size(preset: str, count: int) -> None:
    info = get_model("allegro")
    model = info.model(info.configure(preset, avg_num_neighbors=13.0), ("H", "C", "N", "O"))
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"num_layers": 0}, "num_layers"),
        ({"l_max": -1}, "l_max"),
        ({"l_max": 0, "force_head": "direct"}, "l_max"),
        ({"scalar_channels": 0}, "scalar_channels"),
        ({"tensor_channels": 0}, "tensor_channels"),
        ({"embed_channels": 7}, "embed_channels"),
        ({"embed_channels": 0}, "embed_channels"),
        ({"num_bessel": 0}, "num_bessel"),
        ({"cutoff": 0.0}, "cutoff"),
        ({"cutoff": float("nan")}, "cutoff"),
        ({"cutoff_order": 1.0}, "cutoff_order"),
        ({"update": "sparse"}, "update"),
        ({"nonlinearity": "sulu"}, "nonlinearity"),
        ({"latent_hidden": (0,)}, "latent_hidden"),
        ({"avg_num_neighbors": -1.0}, "avg_num_neighbors"),
        ({"species_cutoffs": (("H", "N", 2.0),)}, "species_cutoffs"),
        ({"species_cutoffs": (("H", "C", 9.0),)}, "species_cutoffs"),
        ({"species_cutoffs": (("H", "C", 0.0),)}, "species_cutoffs"),
    ],
    ids=str,
)
def test_a_config_that_cannot_be_built_names_the_option(options: dict, key: str) -> None:
    with pytest.raises(InputError) as error:
        make(**options)
    assert key in str(error.value)
