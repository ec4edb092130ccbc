"""NequIP with channels of each degree, and the options beside them: kernels and sweeps equal plain torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from e3nn import o3

from pimlip_zoo.compiled.kernels import use_kernels
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.neighbours import frame_to_sample
from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import AtomGraph
from pimlip_zoo.models.nequip import NequIP, NequIPConfig
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.nn.convolution import Convolution, convolution_spec
from pimlip_zoo.nn.gate import Gate
from pimlip_zoo.nn.radial import XplorCutoff

SPECIES = ("Na", "Cl")
VARIANTS: dict[str, dict[str, Any]] = {
    "natural parity": {"channels_by_degree": (5, 3, 2)},
    "both parities": {
        "channels_by_degree": (5, 3, 2),
        "parity": True,
        "self_connection_weights": "element",
        "resnet": True,
    },
    "no reflections": {
        "channels_by_degree": (8, 4, 3),
        "reflections": False,
        "self_connection_weights": "shared",
        "self_connection_first": True,
        "scalar_bias": True,
        "neighbor_norms": (3.0, 4.0, 5.0),
        "num_bessel": 3,
        "bessel_frequencies": (0.8, 1.9, 3.2),
        "cutoff_function": "xplor",
        "solid_harmonics": True,
        "radial_normalized": True,
    },
    "equal channels": {"channels": 4, "scalar_bias": True, "self_connection_weights": "shared"},
}


def crystal() -> AtomGraph:
    """Four atoms in a skewed cell that is thinner than the cutoff."""
    cell = np.array([[4.2, 0.2, 0.1], [0.3, 3.9, 0.0], [1.0, 0.4, 4.1]])
    fractional = np.array([[0, 0, 0], [0.5, 0.48, 0.03], [0.52, 0, 0.5], [0.02, 0.51, 0.46]])
    frame = Frame(np.array([11, 17, 11, 17]), fractional @ cell, cell=cell, pbc=np.array([True] * 3))
    return frame_to_sample(frame, SPECIES, 4.5).graph


def model(**options: Any) -> NequIP:
    torch.manual_seed(1)
    common = {"cutoff": 4.5, "avg_num_neighbors": 20.0, "radial_hidden": (6,), "num_bessel": 4, **options}
    made = NequIP(NequIPConfig(**common), SPECIES)
    for name, value in made.named_parameters():
        if "bias" in name:
            torch.nn.init.normal_(value)
    return made


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_forces_and_gradients_of_a_loss_on_them_are_those_of_plain_torch(options: dict[str, Any]) -> None:
    made, graph, found = model(**options).double(), crystal(), []
    potential = Potential(made)
    assert potential._sweeps(graph) is not None
    for backend in ("auto", "reference"):
        with use_kernels(backend):
            out = potential(graph)
            loss: torch.Tensor = (
                out.energy.square().sum() + out.forces.square().sum() + out.virial.square().sum()
            )
            gradients = torch.autograd.grad(loss, list(made.parameters()))
        found.append([out.energy, out.forces, out.virial, *gradients])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(
            ours, theirs, rtol=1e-9, atol=1e-11 * float(found[1][0].detach().abs().max() + 1)
        )


def test_equal_channels_of_each_degree_compute_what_channels_do() -> None:
    """The same weights in the same order: the two forms differ in how kernels see them alone."""
    plain, by_degree = model(channels=6).double(), model(channels_by_degree=(6, 6, 6)).double()
    by_degree.load_state_dict(plain.state_dict())
    one, other = Potential(plain)(crystal()), Potential(by_degree)(crystal())
    torch.testing.assert_close(one.forces, other.forces, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one.energy, other.energy, rtol=1e-12, atol=1e-12)


def test_a_mirrored_crystal_has_the_same_energy_only_where_features_have_a_parity() -> None:
    graph = crystal()
    random = torch.Generator().manual_seed(0)
    moved = 0.3 * torch.randn(graph.positions.shape, generator=random, dtype=torch.float64)
    graph = graph._replace(positions=graph.positions + moved)
    flip = torch.diag(torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64))
    mirrored = graph._replace(positions=graph.positions @ flip, cell=graph.cell @ flip)
    turn = torch.as_tensor(o3.rand_matrix(dtype=torch.float64))
    turned = graph._replace(positions=graph.positions @ turn, cell=graph.cell @ turn)
    for reflections in (True, False):
        made = model(channels_by_degree=(5, 3, 2), reflections=reflections, neighbor_norms=(1.0, 1.0, 1.0))
        potential = Potential(made.double())
        energies = [
            potential(each, forces=False, virial=False).energy.item() for each in (graph, turned, mirrored)
        ]
        assert energies[1] == pytest.approx(energies[0], rel=1e-12)
        assert (abs(energies[2] / energies[0] - 1) < 1e-11) is reflections


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("edges", "channels"), [(0, 1), (1, 1), (37, 1), (37, 2)])
def test_the_convolution_of_unequal_widths_is_that_of_e3nn(
    dtype: torch.dtype, edges: int, channels: int
) -> None:
    irreps, harmonics = o3.Irreps("5x0e+3x1e+7x2e"), o3.Irreps("0e+1e+2e")
    spec = convolution_spec(irreps, harmonics, harmonics)
    random = torch.Generator().manual_seed(edges)
    index = torch.randint(0, 6, (2, edges), generator=random)
    index = index[:, torch.argsort(index[0], stable=True)]
    convolution = Convolution(spec, channels)
    x, y, w = (
        torch.randn(shape, generator=random, dtype=torch.float64)
        for shape in ((6, irreps.dim, channels), (edges, 9), (edges, spec.num_weights, channels))
    )
    found = convolution(x.to(dtype), y.to(dtype), w.to(dtype), index)
    expected = torch.zeros(6, int(spec.irreps_out.dim), channels, dtype=torch.float64)
    begin_out = {
        irrep: start for (_, irrep), start in zip(spec.irreps_out, _starts(spec.irreps_out), strict=True)
    }
    copies = {irrep: int(n) for n, irrep in spec.irreps_out}
    begin_in, seen, at = _starts(irreps), {}, 0
    for i, j, irrep in spec.paths:
        n, one, two = int(irreps[i].mul), irreps[i].ir, harmonics[j].ir
        coupling = o3.wigner_3j(one.l, two.l, irrep.l, dtype=torch.float64) * irrep.dim**0.5
        part = x[:, begin_in[i] : begin_in[i] + n * one.dim].view(6, one.dim, n, channels)[index[1]]
        weights, direction = w[:, at : at + n], y[:, harmonics.slices()[j]]
        messages = torch.einsum("abk,eanc,eb,enc->eknc", coupling, part, direction, weights)
        summed = torch.zeros(6, *messages.shape[1:], dtype=torch.float64).index_add(0, index[0], messages)
        for m in range(irrep.dim):
            row = begin_out[irrep] + m * copies[irrep] + seen.get(irrep, 0)
            expected[:, row : row + n] = summed[:, m]
        seen[irrep], at = seen.get(irrep, 0) + n, at + n
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


def _starts(irreps: o3.Irreps) -> list[int]:
    return [part.start for part in irreps.slices()]


def test_there_are_as_many_gates_as_channels_of_what_is_gated() -> None:
    gate = Gate(o3.Irreps("5x0e+3x1o+2x2e"))
    assert gate.irreps_in == o3.Irreps("10x0e+3x1o+2x2e")
    x = torch.randn(4, int(gate.irreps_in.dim), 1, dtype=torch.float64)
    out = gate(x)
    vectors = x[:, 10:19].view(4, 3, 3) * gate.gate_activation(x[:, 5:8]).view(4, 1, 3)
    torch.testing.assert_close(out[:, 5:14].view(4, 3, 3), vectors)


def test_the_xplor_cutoff_is_one_up_to_its_onset_and_smooth_at_both_ends() -> None:
    cutoff = XplorCutoff(0.9)
    x = torch.tensor(
        [0.2, 0.9 - 1e-9, 0.9 + 1e-9, 1 - 1e-9, 1.0, 1.2], dtype=torch.float64, requires_grad=True
    )
    value = cutoff(x)
    (slope,) = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close(value.detach(), torch.tensor([1.0, 1, 1, 0, 0, 0], dtype=torch.float64))
    assert float(slope.abs().max()) < 1e-6


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"channels_by_degree": (4, 2)}, "channels_by_degree"),
        ({"channels_by_degree": (4, 2, 0)}, "channels_by_degree"),
        ({"neighbor_norms": (1.0,)}, "neighbor_norms"),
        ({"neighbor_norms": (1.0, 2.0, -1.0)}, "neighbor_norms"),
        ({"bessel_frequencies": (1.0,)}, "bessel_frequencies"),
        ({"cutoff_onset": 1.0}, "cutoff_onset"),
        ({"cutoff_function": "cosine"}, "cutoff_function"),
        ({"self_connection_weights": "all"}, "self_connection_weights"),
        ({"reflections": False, "force_head": "direct"}, "force_head"),
    ],
    ids=str,
)
def test_options_that_cannot_work_are_refused_by_name(options: dict[str, Any], key: str) -> None:
    with pytest.raises(InputError, match=key):
        model(**options)
