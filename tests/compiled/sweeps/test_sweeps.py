"""Energies, gradients and what trains on both, by four sweeps, equal those by autograd."""

import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pimlip_zoo.compiled.kernels import library, use_kernels
from pimlip_zoo.compiled.sweeps import Levels, predict_structures, sweeps_of, virial_of_edges
from pimlip_zoo.compiled.sweeps.fallback import AutogradBlock
from pimlip_zoo.datasets.neighbours import frame_to_sample
from pimlip_zoo.graph import collate, edge_vectors
from pimlip_zoo.models.base import AtomicEnergyModel, ModelConfig
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.nn.edges import EdgeEmbedding
from pimlip_zoo.nn.mlp import ScalarMLP
from pimlip_zoo.registry import get_model
from pimlip_zoo.testing.structures import STRUCTURES, structure

needs_compiler = pytest.mark.compiler
SPECIES = ("H", "C", "O")
MODELS = {
    "nequip": ("nequip", {"num_layers": 2, "channels": 5, "l_max": 1}),
    "nequip with both parities, residual": (
        "nequip",
        {"num_layers": 3, "channels": 8, "l_max": 1, "parity": True, "resnet": True, "readout_hidden": (4,)},
    ),
    "nequip with trained frequencies": (
        "nequip",
        {"num_layers": 2, "channels": 3, "l_max": 1, "bessel_trainable": True},
    ),
    "allegro": ("allegro", {"l_max": 1, "scalar_channels": 8, "tensor_channels": 3}),
    "allegro of the paper": (
        "allegro",
        {
            "l_max": 1,
            "scalar_channels": 6,
            "tensor_channels": 4,
            "update": "residual",
            "path_channels": False,
        },
    ),
    "mace": ("mace", {"channels": 3, "l_max": 2, "correlation": 2, "radial_hidden": (8,)}),
    "mace with densities": (
        "mace",
        {
            "channels": 4,
            "l_max": 1,
            "correlation": 3,
            "normalization": "density",
            "distance_transform": "agnesi",
        },
    ),
}


def batch_of(names=STRUCTURES, cutoff=3.5):
    return collate([frame_to_sample(structure(name, SPECIES), SPECIES, cutoff) for name in names]).graph


def model_of(name, dtype=torch.float64):
    torch.manual_seed(0)
    kind, options = MODELS[name]
    info = get_model(kind)
    config = info.configure(**options, cutoff=3.5, avg_num_neighbors=5.0)
    return info.model(config, SPECIES).to(dtype)


def by_autograd(model, graph, scale):
    """Energies of atoms, forces and virials."""
    vectors = edge_vectors(graph)
    leaf = vectors.to(next(model.parameters()).dtype).requires_grad_()
    with use_kernels("reference"):
        energies = scale * model(graph, leaf).double()
        (gradient,) = torch.autograd.grad(energies.sum(), leaf, create_graph=True)
    gradient = gradient.double()
    forces = gradient.new_zeros(len(graph.species), 3).index_add(0, graph.edge_index[0], gradient)
    forces = forces.index_add(0, graph.edge_index[1], -gradient)
    return energies, forces, virial_of_edges(graph, vectors, gradient)


def by_sweeps(model, graph, scale, *, derivatives=True):
    """The same."""
    dtype = next(model.parameters()).dtype
    sweeps, levels = sweeps_of(model, dtype), Levels(scale, torch.zeros_like(scale))
    found = predict_structures(sweeps, graph, levels, dtype, forces=derivatives, virial=derivatives)
    return found.atomic_energy, found.forces, found.virial


def weighing(values):
    """Random factors of all values, which make one number of them."""
    return [torch.randn_like(value) for value in values]


def by_parameters(model, values, factors):
    """Derivatives of that number."""
    loss = sum((value * factor).sum() for value, factor in zip(values, factors, strict=True))
    with use_kernels("reference"):
        return torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)


def all_close(left, right, tolerance):
    return all(close(a, b, tolerance) for a, b in zip(left, right, strict=True))


def close(left, right, tolerance):
    if left is None or right is None:
        other = right if left is None else left
        return other is None or not other.numel() or float(other.detach().abs().max()) == 0.0
    size = float(right.detach().abs().max()) if right.numel() else 0.0
    return left.shape == right.shape and (
        not left.numel() or float((left - right).detach().abs().max()) <= tolerance * max(size, 1e-3)
    )


@needs_compiler
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_autograd_in_energies_gradient_and_what_trains_on_both(name, dtype):
    model, graph = model_of(name, dtype), batch_of()
    scale = torch.rand(len(graph.species), dtype=torch.float64) + 0.5
    expected = by_autograd(model, graph, scale)
    factors = weighing(expected)
    assert sweeps_of(model, dtype) is not None
    tolerance = 1e-11 if dtype == torch.float64 else 2e-4
    found = by_sweeps(model, graph, scale)
    assert all_close(found, expected, tolerance)
    ours = by_parameters(model, found, factors)
    assert all_close(ours, by_parameters(model, expected, factors), tolerance)
    with torch.no_grad():
        again = by_sweeps(model, graph, scale)
    assert all(torch.equal(a, b) for a, b in zip(again, found, strict=True))


@needs_compiler
@settings(max_examples=12, deadline=None)
@given(
    names=st.lists(st.sampled_from(["atom", "dimer", "thin", "molecule"]), min_size=1, max_size=3),
    name=st.sampled_from(["nequip", "allegro", "mace"]),
)
def test_one_atom_and_no_edge_are_structures_like_others(names, name):
    model, graph = model_of(name), batch_of(names)
    ones = torch.ones(len(graph.species), dtype=torch.float64)
    found = by_sweeps(model, graph, ones)
    if not graph.edge_index.numel():
        assert not found[1].any()
        (found[0] * torch.randn(len(graph.species))).sum().backward()
        return
    expected = by_autograd(model, graph, ones)
    factors = weighing(expected)
    assert all_close(found, expected, 1e-11)
    ours = by_parameters(model, found, factors)
    assert all_close(ours, by_parameters(model, expected, factors), 1e-10)


@needs_compiler
@pytest.mark.parametrize("name", ["nequip", "allegro", "mace"])
def test_no_step_of_the_architectures_is_left_to_autograd(name):
    sweeps = sweeps_of(model_of(name), torch.float64)
    assert not [step for step in sweeps.trace.steps if isinstance(step.block, AutogradBlock)]


@needs_compiler
def test_a_loss_without_forces_trains_the_same():
    model, graph = model_of("mace"), batch_of()
    vectors = edge_vectors(graph)
    ones = torch.ones(len(graph.species), dtype=torch.float64)
    with use_kernels("reference"):
        expected = torch.autograd.grad(
            model(graph, vectors).square().sum(), list(model.parameters()), allow_unused=True
        )
    for derivatives in (True, False):
        energies, _, _ = by_sweeps(model, graph, ones, derivatives=derivatives)
        ours = torch.autograd.grad(energies.square().sum(), list(model.parameters()), allow_unused=True)
        assert all(close(a, b, 1e-11) for a, b in zip(ours, expected, strict=True))


@needs_compiler
def test_nothing_of_a_prediction_outlives_it():
    model, graph = model_of("nequip"), batch_of()
    ones = torch.ones(len(graph.species), dtype=torch.float64)
    by_sweeps(model, graph, ones)  # what is compiled and loaded for the first one is another matter
    gc.collect()
    gc.disable()
    try:
        energies, forces, virial = by_sweeps(model, graph, ones)
        record = weakref.ref(energies.grad_fn)
        (energies.sum() + forces.square().sum()).backward()
        del energies, forces, virial
        assert record() is None
    finally:
        gc.enable()


@needs_compiler
def test_a_model_is_forgotten_with_its_sweeps():
    model = model_of("nequip")
    assert sweeps_of(model, torch.float64) is not None
    known = weakref.ref(model)
    del model
    gc.collect()
    assert known() is None


@needs_compiler
def test_weights_that_change_between_prediction_and_derivative_are_noticed():
    model, graph = model_of("nequip"), batch_of(["molecule"])
    ones = torch.ones(5, dtype=torch.float64)
    energies, _, _ = by_sweeps(model, graph, ones)
    with torch.no_grad():
        model.species_embedding.mul_(2.0)
    with pytest.raises(RuntimeError, match="changed"):
        energies.sum().backward()
    energies, _, _ = by_sweeps(model, graph, ones)
    with use_kernels("reference"):
        assert close(energies, model(graph, edge_vectors(graph)), 1e-11)


class Foreign(AtomicEnergyModel):
    """Blocks of the package and code of its own that is none."""

    def __init__(self, species):
        super().__init__(ModelConfig(cutoff=3.5), species)
        self.edges = EdgeEmbedding(species, cutoff=3.5, l_max=1, num_basis=4)
        self.embedding = nn.Embedding(len(species), 6)
        self.filter = ScalarMLP((4, 8, 6))
        self.head = nn.Sequential(nn.Linear(6, 6), nn.Softplus(), nn.Linear(6, 1))

    def forward(self, graph, vectors):
        radial, harmonics = self.edges(vectors, graph)
        centre, neighbour = graph.edge_index
        message = self.filter(radial) * self.embedding(graph.species)[neighbour]
        message = torch.exp(-message.square()) * (1.0 + harmonics[:, 1:2] * harmonics[:, 3:4])
        atoms = message.new_zeros((len_of(graph), 6)).index_add(0, centre, message)
        return self.head(atoms).squeeze(-1)


def len_of(graph):
    return graph.species.shape[0]


@needs_compiler
def test_what_has_no_block_is_done_by_autograd():
    torch.manual_seed(0)
    model, graph = Foreign(SPECIES).double(), batch_of()
    scale = torch.rand(len(graph.species), dtype=torch.float64)
    expected, found = by_autograd(model, graph, scale), by_sweeps(model, graph, scale)
    factors = weighing(expected)
    ours = by_parameters(model, found, factors)
    assert all_close(found, expected, 1e-12)
    assert all_close(ours, by_parameters(model, expected, factors), 1e-10)


def test_code_that_looks_at_numbers_is_left_to_autograd():
    class Looks(Foreign):
        def forward(self, graph, vectors):
            return super().forward(graph, vectors) * (2.0 if vectors.sum() > 0 else 1.0)

    class Draws(Foreign):
        def forward(self, graph, vectors):
            return super().forward(graph, vectors) + torch.randn(1)

    assert sweeps_of(Looks(SPECIES), torch.float32) is None
    assert sweeps_of(Draws(SPECIES), torch.float32) is None


@needs_compiler
def test_a_potential_asks_for_derivatives_by_positions_by_autograd():
    graph = batch_of(["molecule", "crystal"])
    potential = Potential(model_of("nequip"), scale=0.7)
    positions = graph.positions.clone().requires_grad_()
    slow = potential(graph._replace(positions=positions))
    fast = potential(graph)
    torch.testing.assert_close(fast.forces, slow.forces, rtol=0, atol=1e-12)
    torch.testing.assert_close(fast.virial, slow.virial, rtol=0, atol=1e-12)
    (second,) = torch.autograd.grad(slow.forces.square().sum(), positions)
    assert second.abs().max() > 0


@needs_compiler
def test_opposite_edges_share_radial_functions_wherever_nothing_else_needs_them():
    from pimlip_zoo.nn.edges import EmbeddingBlock

    def shared(name, **options):
        info = get_model(name)
        model = info.model(info.configure(cutoff=3.5, avg_num_neighbors=5.0, **options), SPECIES)
        steps = sweeps_of(model, torch.float32).trace.steps
        (block,) = [step.block for step in steps if isinstance(step.block, EmbeddingBlock)]
        return block.shared

    assert shared("nequip", channels=4)
    assert shared("mace", channels=4)
    assert not shared("allegro")  # its pairs of species are ordered
    assert not shared("nequip", channels=4, species_cutoffs=(("H", "C", 2.0),))
    assert not shared("mace", channels=4, normalization="density")


@settings(max_examples=15, deadline=None)
@given(
    names=st.lists(st.sampled_from(STRUCTURES), min_size=1, max_size=4),
    cutoff=st.sampled_from([2.0, 3.5, 6.0]),
)
@needs_compiler
def test_every_edge_has_one_opposite(names, cutoff):
    from pimlip_zoo.compiled.kernels.edges import EdgeLists
    from pimlip_zoo.compiled.kernels.pairs import pair_up

    graph = batch_of(names, cutoff)
    pairs = pair_up(EdgeLists(graph.edge_index, len(graph.species)), graph.edge_shift)
    vectors = edge_vectors(graph)
    first, second = pairs.both
    assert torch.equal(torch.cat([first, second]).sort().values, torch.arange(len(vectors)))
    assert torch.equal(vectors[first], -vectors[second])
    assert torch.equal(pairs.of_edge[first].long(), torch.arange(pairs.num_pairs))
    assert torch.equal(pairs.of_edge[second].long(), torch.arange(pairs.num_pairs))


@needs_compiler
def test_an_edge_without_its_opposite_is_a_pair_of_its_own():
    graph = batch_of(["molecule"])
    kept = torch.arange(graph.edge_index.shape[1]) % 3 != 0
    part = graph._replace(edge_index=graph.edge_index[:, kept], edge_shift=graph.edge_shift[kept])
    model = model_of("nequip")
    with use_kernels("reference"):
        expected = Potential(model)(part)
    found = Potential(model)(part)
    torch.testing.assert_close(found.forces, expected.forces, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.energy, expected.energy, rtol=0, atol=1e-12)


@needs_compiler
@pytest.mark.parametrize("name", ["species_embedding", "layers.0.linear_in.weights.0"])
def test_parameters_that_are_replaced_are_noticed(name):
    graph = batch_of(["molecule", "crystal"])
    potential = Potential(model_of("nequip"))
    potential(graph)
    holder = potential.model.get_submodule(name.rpartition(".")[0])
    last = name.rpartition(".")[2]
    setattr(holder, last, nn.Parameter(1.5 * getattr(holder, last).detach()))
    found = potential(graph)
    with use_kernels("reference"):
        expected = potential(graph)
    torch.testing.assert_close(found.energy, expected.energy, rtol=0, atol=1e-11)
    (gradient,) = torch.autograd.grad(found.forces.square().sum(), getattr(holder, last))
    (wanted,) = torch.autograd.grad(expected.forces.square().sum(), getattr(holder, last))
    torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-12)


@needs_compiler
def test_a_functional_call_trains_the_tensors_that_it_is_given():
    graph, potential = batch_of(["molecule"]), Potential(model_of("nequip"))
    before = potential(graph).energy
    other = {
        name: (1.5 * value).detach().requires_grad_() for name, value in potential.model.named_parameters()
    }
    given = {f"model.{name}": value for name, value in other.items()}
    found = torch.func.functional_call(potential, given, (graph,))
    gradients = torch.autograd.grad(found.forces.square().sum(), list(other.values()), allow_unused=True)
    assert sum(float(g.abs().sum()) for g in gradients if g is not None) > 0
    assert (found.energy - before).abs().max() > 1e-6
    torch.testing.assert_close(potential(graph).energy, before, rtol=0, atol=0)


@needs_compiler
@pytest.mark.parametrize("name", ["nequip", "allegro", "mace"])
def test_threads_change_nothing_but_rounding_in_any_sweep(name, monkeypatch):
    monkeypatch.setattr(library, "_SMALL", 0)  # otherwise so little work is not shared out
    model, graph = model_of(name), batch_of()
    scale = torch.rand(len(graph.species), dtype=torch.float64)
    factors = weighing(by_sweeps(model, graph, scale))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            values = by_sweeps(model, graph, scale)
            found.append((*values, *by_parameters(model, values, factors)))
    finally:
        torch.set_num_threads(before)
    for one, several in ((found[0], found[1]), (found[0], found[2])):
        assert all(torch.equal(a, b) for a, b in zip(one[:3], several[:3], strict=True))
        assert all_close(several[3:], one[3:], 1e-12)
