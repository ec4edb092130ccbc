"""Sums over neighbours: torch's and torch-scatter's are the same, with their derivatives."""

import importlib.util

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pimlip_zoo.compiled.kernels import sum_by_centre, use_kernels
from pimlip_zoo.compiled.kernels.sums import segment_sum
from pimlip_zoo.datasets.neighbours import frame_to_sample
from pimlip_zoo.graph import collate
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.registry import get_model
from pimlip_zoo.testing.structures import structure

scatter = pytest.mark.skipif(
    importlib.util.find_spec("torch_scatter") is None, reason="torch-scatter is not installed"
)


@st.composite
def edges(draw):
    degrees = draw(st.lists(st.integers(0, 5), min_size=1, max_size=9))
    centre = torch.repeat_interleave(torch.arange(len(degrees)), torch.tensor(degrees))
    shape = draw(st.sampled_from([(), (1,), (3, 5)]))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    seed = draw(st.integers(0, 99))
    values = torch.randn(len(centre), *shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    return values, centre, len(degrees)


@given(edges())
@settings(deadline=None, max_examples=50)
def test_the_sum_adds_each_edge_at_its_centre(case):
    values, centre, count = case
    expected = torch.stack([values[centre == i].sum(0) for i in range(count)])
    torch.testing.assert_close(sum_by_centre(values, centre, count), expected, rtol=1e-5, atol=1e-5)


@scatter
@given(edges())
@settings(deadline=None, max_examples=50)
def test_torch_scatter_gives_the_same_sums(case):
    values, centre, count = case
    tolerance = 1e-5 if values.dtype == torch.float32 else 1e-12
    expected = values.new_zeros((count, *values.shape[1:])).index_add(0, centre, values)
    torch.testing.assert_close(segment_sum(values, centre, count), expected, rtol=tolerance, atol=tolerance)


@scatter
def test_first_and_second_derivatives_through_torch_scatter_are_right():
    centre = torch.tensor([0, 0, 2, 2, 2, 3])
    values = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)

    def function(v):
        return segment_sum(v, centre, 5).square() * segment_sum(v.sin(), centre, 5)

    assert torch.autograd.gradcheck(function, values)
    assert torch.autograd.gradgradcheck(function, values)


@scatter
@pytest.mark.parametrize("name", ["nequip", "allegro", "mace"])
def test_models_with_torch_scatter_have_the_energies_forces_and_gradients_of_torch(name):
    info, species = get_model(name), ("H", "C", "O")
    torch.manual_seed(0)
    potential = Potential(info.model(info.configure("small", cutoff=4.0), species).double())
    names = ("molecule", "atom", "triclinic")  # the atom has no edge
    batch = collate([frame_to_sample(structure(kind, species), species, 4.0) for kind in names])
    found = {}
    for backend in ("reference", "scatter"):
        with use_kernels(backend):
            potential.zero_grad()
            predictions = potential(batch.graph)
            (predictions.energy.square().sum() + predictions.forces.square().sum()).backward()
        gradient = torch.cat([p.grad.flatten() for p in potential.parameters() if p.grad is not None])
        found[backend] = (predictions.energy, predictions.forces, predictions.virial, gradient)
    for one, two in zip(found["reference"], found["scatter"], strict=True):
        torch.testing.assert_close(two, one, rtol=1e-10, atol=1e-10)
