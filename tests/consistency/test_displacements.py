import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from surfaces import SKEWED, SPECIES, Morse, OneBody, batch_of, mixed_batch, molecule, potential

from pimlip_zoo.consistency.displacements import (
    DISPLACEMENTS,
    Context,
    Gaussian,
    LocalMask,
    RandomStrain,
    SpeciesScaled,
    Sphere,
    UniformCube,
    atom_count,
)
from pimlip_zoo.datasets.neighbours import frame_to_sample
from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import collate, edge_vectors, sum_by_structure

AMPLITUDE = 0.05


def directed(kind, *args, **options):
    """A baseline that lives outside the package."""
    return DISPLACEMENTS.get(kind).make(*args, **options)


def context(batch, model=None):
    model = model or potential(Morse())
    return Context(model, batch, model(batch.graph))


def members(count=3):
    models = []
    for index in range(count):
        model = potential(Morse())
        model.model.strength.data += 0.1 * index * index
        models.append(model)
    return models


KINDS = {
    "uniform": lambda: UniformCube(AMPLITUDE),
    "gaussian": lambda: Gaussian(AMPLITUDE),
    "sphere": lambda: Sphere(AMPLITUDE),
    "species": lambda: SpeciesScaled(UniformCube(AMPLITUDE), (2.0, 1.0, 0.5)),
    "local": lambda: LocalMask(UniformCube(AMPLITUDE), 2.0),
    "force_error": lambda: directed("force_error", AMPLITUDE),
    "variance": lambda: directed("variance", AMPLITUDE, members()),
    "stiff": lambda: directed("stiff", AMPLITUDE),
    "soft": lambda: directed("soft", AMPLITUDE),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def many(count=400, atoms=6):
    """Many copies of one structure."""
    return collate([frame_to_sample(molecule(atoms, 0), SPECIES, 4.6)] * count)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_no_mean_no_gradient_and_never_beyond_the_maximum(kind, seed):
    perturbation, batch = KINDS[kind](), mixed_batch(seed=seed % 7)
    d = perturbation.sample(batch.graph, generator(seed), context(batch))
    assert d.shape == batch.graph.positions.shape
    assert d.dtype == torch.float64
    assert not d.requires_grad
    assert sum_by_structure(d, batch.graph).abs().max() < 1e-12
    assert torch.linalg.vector_norm(d, dim=1).max() <= perturbation.max_displacement * (1 + 1e-12)
    assert perturbation.max_relative_displacement == 2 * perturbation.max_displacement


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_displacement_and_another_another(kind):
    perturbation, batch = KINDS[kind](), mixed_batch()
    surroundings = context(batch)
    first, again, other = (perturbation.sample(batch.graph, generator(s), surroundings) for s in (1, 1, 2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    if kind != "variance":  # a direction that the potentials determine
        assert (first - other).abs().max() > 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_several_displacements_are_independent_and_each_like_one(kind):
    perturbation, batch = KINDS[kind](), mixed_batch()
    drawn = perturbation.sample_several(3, batch.graph, generator(), context(batch))
    assert len(drawn) == 3
    for d in drawn:
        assert d.shape == batch.graph.positions.shape
        assert not d.requires_grad
        assert sum_by_structure(d, batch.graph).abs().max() < 1e-12
        assert torch.linalg.vector_norm(d, dim=1).max() <= perturbation.max_displacement * (1 + 1e-12)
    if kind not in ("variance", "force_error"):  # directions that the potentials determine
        assert (drawn[0] - drawn[1]).abs().max() > 1e-6


def test_several_cubes_are_not_correlated():
    graph = many(count=2000, atoms=6).graph
    a, b = (d.flatten() for d in UniformCube(AMPLITUDE).sample_several(2, graph, generator()))
    assert torch.corrcoef(torch.stack([a, b]))[0, 1].abs() < 4 / len(a) ** 0.5
    assert a.std().item() == pytest.approx(b.std().item(), rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_one_atom_stays_where_it_is_and_no_atom_is_no_error(kind):
    batch = batch_of([molecule(1, 0)], 4.6)
    d = KINDS[kind]().sample(batch.graph, generator(), context(batch))
    assert d.abs().max() == 0.0


@pytest.mark.parametrize("kind", ["uniform", "gaussian", "sphere", "species", "local"])
def test_displacements_take_the_dtype_of_the_positions(kind):
    graph = mixed_batch().graph
    graph = graph._replace(positions=graph.positions.float(), cell=graph.cell.float())
    assert KINDS[kind]().sample(graph, generator()).dtype == torch.float32


def test_the_cube_fills_its_edges_and_not_more():
    graph = many(atoms=12).graph
    d = UniformCube(AMPLITUDE).sample(graph, generator())
    assert d.abs().max() <= AMPLITUDE * (1 + 1e-12)
    assert d.abs().max() > 0.99 * AMPLITUDE
    expected = AMPLITUDE / math.sqrt(3.0) * math.sqrt(1 - 1 / 12)
    assert d.std().item() == pytest.approx(expected, rel=0.06)
    assert abs(d.mean().item()) < 1e-12


@pytest.mark.parametrize("atoms", [2, 3, 9])
def test_the_gaussian_has_the_deviation_that_was_asked_for(atoms):
    graph = many(count=3000 // atoms, atoms=atoms).graph
    d = Gaussian(AMPLITUDE).sample(graph, generator())
    assert d.square().mean().sqrt().item() == pytest.approx(AMPLITUDE, rel=0.03)
    kurtosis = (d**4).mean() / d.square().mean() ** 2
    assert kurtosis.item() == pytest.approx(3.0, abs=0.35)


def test_the_sphere_has_the_root_mean_square_that_was_asked_for_in_every_structure():
    graph = many().graph
    d = Sphere(AMPLITUDE).sample(graph, generator())
    rms = (sum_by_structure(d.square().sum(dim=1), graph) / atom_count(graph)).sqrt()
    torch.testing.assert_close(rms, torch.full_like(rms, AMPLITUDE), rtol=1e-9, atol=0)


def test_directions_of_the_sphere_are_isotropic():
    graph = many(2000, 4).graph
    d = Sphere(AMPLITUDE).sample(graph, generator())
    covariance = d.T @ d / len(d)
    expected = torch.eye(3, dtype=torch.float64) * AMPLITUDE**2 / 3
    torch.testing.assert_close(covariance, expected, rtol=0, atol=0.05 * AMPLITUDE**2)


def test_species_move_in_proportion_to_their_factors_and_a_factor_of_zero_not_at_all():
    graph = batch_of([molecule(12, seed) for seed in range(100)], 4.6).graph
    d = SpeciesScaled(UniformCube(AMPLITUDE), (0.0, 1.0, 3.0)).sample(graph, generator())
    rms = [d[graph.species == s].square().mean().sqrt().item() for s in range(3)]
    assert rms[0] == 0.0
    assert 2.0 < rms[2] / rms[1] < 4.0


def test_only_a_neighbourhood_moves_under_a_local_mask():
    batch = batch_of([molecule(20, s, SKEWED * 1.2) for s in range(4)], 4.6)
    mask = LocalMask(UniformCube(AMPLITUDE), 1.6)
    d = mask.sample(batch.graph, generator())
    moved = d.abs().sum(dim=1) > 0
    share = sum_by_structure(moved.double(), batch.graph) / atom_count(batch.graph)
    assert (share > 0).all()
    assert (share < 0.9).all()
    near = torch.linalg.vector_norm(edge_vectors(batch.graph), dim=1) < 1.6
    for structure in range(4):
        atoms = (moved & (batch.graph.batch == structure)).nonzero().flatten()
        reach = [
            set(batch.graph.edge_index[1][near & (batch.graph.edge_index[0] == atom)].tolist()) | {int(atom)}
            for atom in atoms
        ]
        assert any(set(atoms.tolist()) <= neighbours for neighbours in reach)


def test_force_errors_are_followed_and_missing_labels_give_a_random_direction():
    batch = mixed_batch()
    forces = batch.labels.forces.clone()
    forces[batch.graph.batch == 2] = float("nan")
    batch = batch._replace(labels=batch.labels._replace(forces=forces))
    surroundings = context(batch)
    d = directed("force_error", AMPLITUDE).sample(batch.graph, generator(), surroundings)
    error = surroundings.predictions.forces - forces
    for structure in (0, 3):
        atoms = batch.graph.batch == structure
        e = error[atoms] - error[atoms].mean(dim=0)
        cosine = (d[atoms] * e).sum() / (d[atoms].norm() * e.norm())
        assert abs(cosine.item()) == pytest.approx(1.0, abs=1e-9)
    assert not torch.isnan(d).any()
    assert d[batch.graph.batch == 2].abs().max() > 0


def test_the_variance_grows_along_its_own_direction():
    batch, ensemble = batch_of([molecule(6, 0), molecule(5, 1)], 4.6), members()
    d = directed("variance", 0.01, ensemble).sample(batch.graph, generator())

    def variance(x):
        graph = batch.graph._replace(positions=x)
        return torch.stack([model(graph, forces=False).energy for model in ensemble]).var(dim=0)

    x = batch.graph.positions.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(variance(x).sum(), x)
    for structure in (0, 1):
        atoms = batch.graph.batch == structure
        cosine = (d[atoms] * gradient[atoms]).sum() / (d[atoms].norm() * gradient[atoms].norm())
        assert cosine.item() == pytest.approx(1.0, abs=1e-9)
    with pytest.raises(InputError, match="at least 2"):
        directed("variance", 0.01, ensemble[:1])


@pytest.mark.parametrize("kind", ["stiff", "soft"])
def test_modes_are_stiffer_or_softer_than_random_directions(kind):
    model = potential(OneBody(5, harmonic=True))
    frames = [molecule(5, s) for s in range(30)]
    batch = batch_of(frames, 30.0)
    surroundings = context(batch, model)
    hessian = model.model.hessian

    def curvature(d):
        x = d.reshape(30, 5, 3)
        x = (x - x[:, :1]).reshape(30, -1)
        return (((x @ hessian) * x).sum(dim=1) / x.square().sum(dim=1)).mean()

    random = curvature(Sphere(AMPLITUDE).sample(batch.graph, generator()))
    found = curvature(directed(kind, AMPLITUDE, 6).sample(batch.graph, generator(), surroundings))
    assert found > 1.5 * random if kind == "stiff" else found < 0.6 * random


def test_rigid_rotations_of_molecules_are_removed_and_crystals_are_left_alone():
    batch = batch_of([molecule(6, 0), molecule(6, 1, SKEWED)], 4.6)
    graph = batch.graph
    w = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64)
    d = torch.linalg.cross(w.expand_as(graph.positions), graph.positions)
    d = d - (sum_by_structure(d, graph) / 6)[graph.batch]
    remove_rotation = sys.modules["pimlip_zoo_baselines.displacements"].remove_rotation
    left = remove_rotation(d, graph)
    assert left[:6].abs().max() < 1e-9
    torch.testing.assert_close(left[6:], d[6:])


def test_strains_are_symmetric_within_the_amplitude_and_widen_enough():
    graph = many(300, 2).graph
    strain = RandomStrain(0.02).sample(graph, generator())
    torch.testing.assert_close(strain, strain.transpose(1, 2), rtol=0, atol=0)
    assert strain.abs().max() <= 0.02
    assert strain.abs().max() > 0.019
    assert strain.std().item() == pytest.approx(0.02 / math.sqrt(3), rel=0.05)
    norm = torch.linalg.matrix_norm(strain, ord=2).max()
    # A pair that a strain brings within the cutoff was not further away than this.
    assert 4.0 / (1 - norm) <= 4.0 + RandomStrain(0.02).max_relative_displacement(4.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: UniformCube(0.0),
        lambda: Gaussian(-0.1),
        lambda: Sphere(float("nan")),
        lambda: SpeciesScaled(UniformCube(0.1), (1.0, -1.0)),
        lambda: SpeciesScaled(UniformCube(0.1), (0.0, 0.0)),
        lambda: LocalMask(UniformCube(0.1), 0.0),
        lambda: RandomStrain(0.3),
    ],
)
def test_nonsense_is_refused(make):
    with pytest.raises(InputError):
        make()
