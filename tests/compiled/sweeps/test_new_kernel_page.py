"""The block of docs/guide/new-kernel.md is right, and `models --trace` tells which steps have one."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from pimlip_zoo.cli import app
from pimlip_zoo.compiled.kernels import compiled_operation, use_kernels
from pimlip_zoo.compiled.kernels.dispatch import OPERATIONS
from pimlip_zoo.compiled.kernels.watch import watched_by
from pimlip_zoo.compiled.sweeps.describe import described
from pimlip_zoo.datasets.neighbours import frame_to_sample
from pimlip_zoo.errors import InputError
from pimlip_zoo.models.base import AtomicEnergyModel, ModelConfig
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.nn.edges import EdgeEmbedding
from pimlip_zoo.nn.mlp import ScalarMLP
from pimlip_zoo.testing.structures import STRUCTURES, structure

PAGE = Path(__file__).parents[3] / "docs" / "guide" / "new-kernel.md"
SPECIES = ("H", "C", "O")


@pytest.fixture(scope="module")
def names():
    """What the page defines; the operation that it registers is forgotten afterwards."""
    found, before = {}, dict(OPERATIONS._items)
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), found)
    yield found
    OPERATIONS._items = before


class Pair(AtomicEnergyModel):
    """Pair energies through an embedding, a layer of the page, and a network."""

    def __init__(self, layer):
        super().__init__(ModelConfig(cutoff=3.5), SPECIES)
        self.edges = EdgeEmbedding(SPECIES, cutoff=3.5, l_max=1, num_basis=4)
        self.layer = layer
        self.readout = ScalarMLP((4, 8, 1))

    def forward(self, graph, vectors):
        radial, _ = self.edges(vectors, graph)
        energies = self.readout(self.layer(radial)).squeeze(-1)
        atoms = energies.new_zeros(graph.species.shape[0])
        return atoms.index_add(0, graph.edge_index[0], energies)


def potential_with(layer):
    torch.manual_seed(0)
    return Potential(Pair(layer)).set_dtype(torch.float64)


def bent(names):
    layer = names["Bend"](4)
    nn.init.normal_(layer.a)
    return layer


def graph_of(name):
    return frame_to_sample(structure(name, SPECIES), SPECIES, 3.5).graph


def run(*arguments):
    return CliRunner().invoke(app, ["models", *arguments])


@pytest.mark.compiler
@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("block", ["BendBlock", "BendByOperation"])
def test_both_blocks_of_the_page_give_autograd_s_gradients(names, name, block):
    names["blocks"](names["Bend"])(names[block])
    assert {step.block for step in described(Pair(bent(names)))} >= {block}
    assert names["agrees"](potential_with(bent(names)), graph_of(name))


@pytest.mark.compiler
def test_a_wrong_second_derivative_is_noticed(names, monkeypatch):
    right = names["BendBlock"].second

    def second(self, saved, tangents, g, h):
        return right(self, saved, tangents, None, h)

    names["blocks"](names["Bend"])(names["BendBlock"])
    monkeypatch.setattr(names["BendBlock"], "second", second)
    assert not names["agrees"](potential_with(bent(names)), graph_of("molecule"))


def test_the_operation_of_the_page_has_derivatives_of_every_order(names):
    bend, plain = names["bend"], names["Bend"](2)
    x = torch.linspace(-1.5, 2.0, 6, dtype=torch.float64).view(3, 2).requires_grad_()
    a = torch.tensor([0.3, -0.7], dtype=torch.float64, requires_grad=True)
    plain.a = nn.Parameter(a.detach())
    assert torch.equal(bend(x, a), plain(x))
    assert torch.autograd.gradcheck(bend, (x, a))
    assert torch.autograd.gradgradcheck(bend, (x, a))

    def gradient(x, a):
        z = bend(x, a)
        return torch.autograd.grad(z, (x, a), torch.cos(z), create_graph=True)

    assert torch.autograd.gradgradcheck(gradient, (x, a))


@pytest.mark.compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_compiled_operation_of_the_page_is_registered_from_outside_and_computes(names, dtype):
    assert OPERATIONS.get("bend") is names["BEND"]
    torch.manual_seed(0)
    x, a = torch.randn(7, 5, dtype=dtype, requires_grad=True), torch.randn(5, dtype=dtype, requires_grad=True)
    calls = []
    with watched_by(SimpleNamespace(called=calls.append)):
        compiled = names["compiled_bend"](x, a)
    (call,) = calls
    assert call.library is names["cpu_bend"](5, dtype)
    exact = 1e-14 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(compiled, x + a * x**3, rtol=exact, atol=exact)
    with use_kernels("reference"):
        plain = names["compiled_bend"](x, a)
    assert torch.equal(plain, x + a * x**3)
    if dtype == torch.float64:
        assert torch.autograd.gradcheck(names["compiled_bend"], (x, a))
        assert torch.autograd.gradgradcheck(names["compiled_bend"], (x, a))


def test_another_operation_of_the_same_name_is_refused(names):
    def other(channels, dtype):
        return names["CpuBend"](channels, dtype)

    with pytest.raises(InputError, match="two compiled operations are called 'bend'"):
        compiled_operation("bend", cpu=other)


def test_a_layer_without_a_block_is_left_to_autograd():
    steps = {step.name: step for step in described(Pair(nn.Softplus()))}
    assert steps["layer"].how == "autograd"
    assert steps["readout"].how == "block"


def test_a_model_without_blocks_is_not_traced():
    class Bare(AtomicEnergyModel):
        def __init__(self):
            super().__init__(ModelConfig(cutoff=3.5), SPECIES)
            self.strength = nn.Parameter(torch.ones(()))

        def forward(self, graph, vectors):
            return self.strength * vectors.square().sum(1)

    assert described(Bare()) is None


@pytest.mark.parametrize("name", ["nequip", "allegro", "mace"])
def test_every_step_of_the_package_s_own_architectures_is_compiled(name):
    done = run(name, "--trace", "--preset", "small", "--json")
    assert done.exit_code == 0
    steps = json.loads(done.stdout)
    assert {step["how"] for step in steps} == {"block", "plain"}
    assert all(step["kind"] == "function" for step in steps if step["how"] == "plain")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--trace"], "name an architecture"), (["nequip", "--preset", "small"], "--trace")],
)
def test_wrong_uses_of_trace_are_told(arguments, words):
    done = run(*arguments)
    assert done.exit_code != 0
    assert words in str(done.exception) + done.output
