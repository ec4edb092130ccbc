"""Whole models by triton (interpreted where there is no GPU) and by cuEquivariance are those in plain torch."""

import importlib.util

import numpy as np
import pytest
import torch
from test_triton import device, needs_triton, triton_kernels

from pimlip_zoo.compiled.kernels import use_kernels
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.neighbours import frame_to_sample
from pimlip_zoo.graph import graph_to
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.registry import get_model

needs_cueq = pytest.mark.skipif(
    importlib.util.find_spec("cuequivariance_torch") is None,
    reason="cuEquivariance is not installed: pip install 'pimlip-zoo[cueq]'",
)
SMALL = {
    "nequip": {"num_layers": 2, "l_max": 1, "channels": 2},
    "allegro": {"num_layers": 1, "l_max": 1, "scalar_channels": 4, "tensor_channels": 2},
    "mace": {"num_interactions": 2, "l_max": 1, "hidden_l_max": 1, "channels": 2, "correlation": 2},
}


def training_step(model: str) -> list[torch.Tensor]:
    """Energy, forces, and gradients of the parameters of a loss on both."""
    torch.manual_seed(0)
    info = get_model(model)
    config = info.configure(**SMALL[model], cutoff=3.0, avg_num_neighbors=2.0)
    potential = Potential(info.model(config, ("H", "O"))).set_dtype(torch.float64).to(device)
    positions = [[0.0, 0.0, 0.0], [0.96, 0.05, 0.0], [-0.24, 0.93, 0.1]]
    frame = Frame(numbers=np.array([8, 1, 1]), positions=np.array(positions))
    graph = graph_to(frame_to_sample(frame, ("H", "O"), potential.cutoff).graph, device)
    predicted = potential(graph)
    (predicted.energy.sum() + predicted.forces.square().sum()).backward()
    gradients = [p.grad for p in potential.parameters() if p.grad is not None]
    return [t.detach().cpu() for t in (predicted.energy, predicted.forces, *gradients)]


@pytest.mark.parametrize("model", sorted(SMALL))
@pytest.mark.parametrize(
    "backend", [pytest.param("triton", marks=needs_triton), pytest.param("cueq", marks=needs_cueq)]
)
def test_a_training_step_is_that_in_plain_torch(model, backend):
    with use_kernels("reference"):
        expected = training_step(model)
    with triton_kernels() if backend == "triton" else use_kernels(backend):
        found = training_step(model)
    assert len(found) == len(expected) > 5
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-10)
