"""torch.compile sees an architecture as one graph: what chooses kernels does not break it."""

import pytest
import torch

from pimlip_zoo.datasets.neighbours import frames_to_batch
from pimlip_zoo.datasets.readers import load_frames
from pimlip_zoo.graph import edge_vectors
from pimlip_zoo.registry import get_model


@pytest.mark.parametrize("name", ["nequip", "allegro", "mace"])
def test_an_architecture_is_traced_without_a_break(name):
    entry = get_model(name)
    model = entry.model(entry.config(l_max=1), ("H", "C", "O"))
    graph = frames_to_batch(load_frames("builtin:ethanol-gfn2@:1"), ("H", "C", "O"), 5.0).graph
    found = torch._dynamo.explain(model)(graph, edge_vectors(graph).float())
    torch._dynamo.reset()
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons
