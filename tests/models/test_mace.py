"""MACE's own properties; those of every architecture are the contract suite's business."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.neighbours import frame_to_sample
from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import AtomGraph, Batch, Labels, collate, edge_vectors
from pimlip_zoo.models.mace import MACE, MACEConfig
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.nn.zbl import ZBL
from pimlip_zoo.registry import get_model

SPECIES = ("H", "C", "O")
TINY = {
    "cutoff": 3.0,
    "avg_num_neighbors": 6.0,
    "channels": 3,
    "l_max": 2,
    "radial_hidden": (8,),
    "num_bessel": 4,
    "readout_hidden": (4,),
}
VARIANTS = (
    {},
    {"hidden_l_max": 2, "correlation": 2, "coupling": "reduced", "residual_first": True},
    {"hidden_l_max": 0, "num_interactions": 3, "correlation": 1},
    {"num_interactions": 1, "l_max": 3, "readout_hidden": ()},
    {"correlation": 4, "l_max": 1},
    {"normalization": "density", "distance_transform": "agnesi", "bessel_trainable": True},
    {"l_max": 0, "hidden_l_max": 0},
    {"species_cutoffs": (("H", "C", 2.0), ("C", "H", 2.0))},
)


def make(**options: object) -> MACE:
    torch.manual_seed(3)
    return MACE(MACEConfig(**{**TINY, **options}), SPECIES).to(torch.float64)


def structure(atoms: int = 7, *, cell: bool = False, seed: int = 0) -> AtomGraph:
    """Atoms 1.4 Å apart, shaken; with a cell: skewed and thinner than the cutoff."""
    rng = np.random.default_rng(seed)
    lattice = 1.4 * np.array([[n % 2, n // 2 % 2, n // 4] for n in range(atoms)], dtype=float).reshape(-1, 3)
    frame = Frame(
        numbers=np.array([(1, 6, 8)[n % 3] for n in range(atoms)], dtype=int),
        positions=lattice + 0.3 * rng.random((atoms, 3)),
        cell=np.array([[2.9, 0.2, 0.1], [0.7, 3.1, -0.3], [-0.4, 0.6, 3.3]]) if cell else np.zeros((3, 3)),
        pbc=np.full(3, cell),
    )
    return frame_to_sample(frame, SPECIES, 3.0).graph


@pytest.mark.parametrize("cell", [False, True])
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_energies_do_not_change_under_rotation_and_inversion(options: dict, cell: bool) -> None:
    model, graph = make(**options), structure(cell=cell)
    vectors = edge_vectors(graph)
    rotation = torch.linalg.qr(
        torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    )[0]
    energies = model(graph, vectors).detach()
    assert float(energies.std()) > 1e-4
    for turn in (rotation, -rotation):
        torch.testing.assert_close(model(graph, vectors @ turn.T).detach(), energies, rtol=0, atol=1e-11)


def test_direct_forces_turn_with_the_structure() -> None:
    model, graph = make(force_head="direct", num_interactions=3), structure()
    vectors = edge_vectors(graph)
    rotation = torch.linalg.qr(
        torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    )[0]
    energies, forces = model.energies_and_forces(graph, vectors)
    assert float(forces.detach().abs().max()) > 1e-4
    for turn in (rotation, -rotation):
        turned_energies, turned = model.energies_and_forces(graph, vectors @ turn.T)
        torch.testing.assert_close(turned_energies, energies, rtol=0, atol=1e-11)
        torch.testing.assert_close(turned, forces @ turn.T, rtol=0, atol=1e-11)
    torch.testing.assert_close(model(graph, vectors), energies, rtol=0, atol=1e-13)


def test_every_layer_contributes_to_the_direct_forces() -> None:
    model, graph = make(force_head="direct"), structure()
    _, forces = model.energies_and_forces(graph, edge_vectors(graph))
    for readout in model.force_readouts:
        (gradient,) = torch.autograd.grad(forces.square().sum(), readout.linear.weights[0], retain_graph=True)
        assert float(gradient.abs().max()) > 0


@pytest.mark.parametrize("options", [VARIANTS[0], VARIANTS[5]], ids=str)
def test_forces_and_virial_are_derivatives_of_the_energy(options: dict) -> None:
    graph = structure(5, cell=True)
    potential = Potential(make(**options), scale=2.0, repulsion=ZBL(SPECIES, cutoff_order=5))
    predictions = potential(graph)
    step = 1e-5

    def energy(moved: AtomGraph) -> float:
        return float(potential(moved, forces=False, virial=False).energy.detach().sum())

    for atom, axis in ((0, 0), (3, 2)):
        delta = torch.zeros_like(graph.positions)
        delta[atom, axis] = step
        slope = (energy(graph._replace(positions=graph.positions + delta))
                 - energy(graph._replace(positions=graph.positions - delta))) / (2 * step)  # fmt: skip
        assert predictions.forces[atom, axis].item() == pytest.approx(-slope, abs=1e-7)
    strain = torch.zeros(3, 3, dtype=torch.float64)
    strain[0, 1] = strain[1, 0] = step
    strained = [
        graph._replace(positions=graph.positions @ grow, cell=graph.cell @ grow)
        for grow in (torch.eye(3, dtype=torch.float64) + strain, torch.eye(3, dtype=torch.float64) - strain)
    ]
    slope = (energy(strained[0]) - energy(strained[1])) / (2 * step)
    assert 2 * predictions.virial[0, 0, 1].item() == pytest.approx(-slope, abs=1e-6)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_an_atom_sees_as_many_cutoffs_away_as_there_are_interactions(options: dict) -> None:
    model = make(**options)
    depth = model.interaction_depth
    assert depth == model.config.num_interactions
    chain = np.zeros((depth + 2, 3))
    chain[:, 0] = 2.0 * np.arange(depth + 2)
    chain[:, 1] = 0.2 * (np.arange(depth + 2) % 2)
    numbers = np.array([(1, 6, 8)[n % 3] for n in range(depth + 2)])
    if options.get("species_cutoffs"):
        numbers[:] = 6
    frame = Frame(numbers=numbers, positions=chain, cell=np.zeros((3, 3)), pbc=np.zeros(3, dtype=bool))
    graph = frame_to_sample(frame, SPECIES, 3.0).graph
    vectors = edge_vectors(graph).requires_grad_(True)
    (gradient,) = torch.autograd.grad(model(graph, vectors)[0], vectors)
    first_atom_that_an_edge_belongs_to = graph.edge_index.min(dim=0).values
    within = first_atom_that_an_edge_belongs_to < depth
    assert torch.count_nonzero(gradient[~within]) == 0
    assert bool((gradient[first_atom_that_an_edge_belongs_to == depth - 1].abs().amax(dim=1) > 0).any())


def test_an_isolated_atom_keeps_its_reference_energy() -> None:
    graph = structure(1)
    references = torch.tensor([-13.6, -1029.0, -2042.0], dtype=torch.float64)
    for options in VARIANTS:
        predictions = Potential(make(**options), energy_references=references)(graph)
        is_reference = predictions.energy.item() == references[0].item()
        assert is_reference != options.get("residual_first", False)
        assert torch.count_nonzero(predictions.forces) == 0


def test_a_structure_of_a_batch_is_as_if_alone() -> None:
    model = make()
    samples = [structure(7), structure(1), structure(4, cell=True, seed=2)]

    def labelled(graph: AtomGraph) -> Batch:
        atoms = len(graph.species)
        nan = {"energy": (1,), "forces": (atoms, 3), "stress": (1, 3, 3)}
        values = {k: torch.full(shape, float("nan"), dtype=torch.float64) for k, shape in nan.items()}
        weights = {
            "weight": torch.ones(1, dtype=torch.float64),
            "label_weights": torch.ones(1, 3, dtype=torch.float64),
        }
        return Batch(graph, Labels(**values, **weights))

    together = collate([labelled(graph) for graph in samples]).graph
    alone = torch.cat([model(graph, edge_vectors(graph)) for graph in samples])
    torch.testing.assert_close(model(together, edge_vectors(together)), alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [*VARIANTS, {"force_head": "direct"}], ids=str)
def test_scripted_saved_and_loaded_equals_eager(options: dict, tmp_path) -> None:
    model, graph = make(**options), structure(cell=True)
    torch.jit.script(model).save(tmp_path / "model.pt")
    loaded = torch.jit.load(tmp_path / "model.pt")
    vectors = edge_vectors(graph)
    for _ in range(3):
        torch.testing.assert_close(loaded(graph, vectors), model(graph, vectors), rtol=0, atol=1e-12)
    if "force_head" in options:
        expected = model.energies_and_forces(graph, vectors)[1]
        torch.testing.assert_close(
            loaded.energies_and_forces(graph, vectors)[1], expected, rtol=0, atol=1e-12
        )


def test_single_precision_is_close_to_double() -> None:
    graph = structure(cell=True)
    model = make(avg_num_neighbors=30.0)
    exact = model(graph, edge_vectors(graph)).detach()
    single = model.to(torch.float32)(graph, edge_vectors(graph).float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-5)
    back = model.to(torch.float64)
    assert back.layers[0].contraction._table.dtype == torch.float64
    torch.testing.assert_close(back(graph, edge_vectors(graph)).detach(), exact, rtol=0, atol=1e-5)


def test_no_atom_and_no_edge() -> None:
    empty = structure(0)
    assert make()(empty, edge_vectors(empty)).shape == (0,)


@pytest.mark.parametrize(
    ("options", "count"),
    [({}, 102_320), ({"residual_first": True}, 90_032), ({"coupling": "reduced"}, 93_104)],
    ids=str,
)
def test_the_small_preset_has_as_many_parameters_as_documented(options: dict, count: int) -> None:
    info = get_model("mace")
    model = info.model(info.configure("small", **options), ("H", "C", "N", "O"))
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize("preset", ["medium", "large"])
def test_presets_can_be_built(preset: str) -> None:
    info = get_model("mace")
    model = info.model(info.configure(preset), SPECIES)
    assert sum(parameter.numel() for parameter in model.parameters()) > 102_320


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"correlation": 0}, "correlation"),
        ({"correlation": 5}, "correlation"),
        ({"cutoff": 0.0}, "cutoff"),
        ({"avg_num_neighbors": -1.0}, "avg_num_neighbors"),
        ({"num_interactions": 0}, "num_interactions"),
        ({"l_max": -1}, "l_max"),
        ({"channels": 0}, "channels"),
        ({"num_bessel": 0}, "num_bessel"),
        ({"cutoff_order": 1.0}, "cutoff_order"),
        ({"hidden_l_max": 0, "force_head": "direct"}, "hidden_l_max"),
        ({"l_max": 0, "hidden_l_max": 1}, "hidden_l_max"),
        ({"distance_transform": "soft"}, "distance_transform"),
        ({"normalization": "mean"}, "normalization"),
        ({"coupling": "all"}, "coupling"),
        ({"readout_gate": "silou"}, "readout_gate"),
        ({"radial_hidden": (0,)}, "radial_hidden"),
        ({"species_cutoffs": (("H", "Cl", 2.0),)}, "species_cutoffs"),
        ({"species_cutoffs": (("H", "C", 9.0),)}, "species_cutoffs"),
    ],
    ids=str,
)
def test_a_config_that_cannot_be_built_names_the_option(options: dict, key: str) -> None:
    with pytest.raises(InputError) as error:
        make(**options)
    assert error.value.key == key
    assert "\n" not in str(error.value)


def test_an_unknown_element_is_refused_where_its_radius_matters() -> None:
    with pytest.raises(InputError, match="'Q' is not a chemical element"):
        MACE(MACEConfig(**TINY, distance_transform="agnesi"), ("H", "Q"))
