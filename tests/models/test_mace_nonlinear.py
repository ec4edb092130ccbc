"""MACE's nonlinear interactions: states of charge and spin, options, what is exported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pimlip_zoo.cli.import_ import write_run
from pimlip_zoo.compiled.kernels import use_kernels
from pimlip_zoo.compiled.sweeps.trace import trace_model
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.neighbours import frames_to_batch
from pimlip_zoo.deploy.native.export import export_native
from pimlip_zoo.deploy.torchscript import export_torchscript
from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import AtomGraph
from pimlip_zoo.models.mace_nonlinear import MACENonlinear, MACENonlinearConfig
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.nn.radial_network import LayerNorm
from pimlip_zoo.training.finetune import start_from

SPECIES = ("C", "H")
SMALL = {
    "avg_num_neighbors": 3.0,
    "channels": 4,
    "edge_channels": 3,
    "l_max": 1,
    "correlation": 2,
    "radial_hidden": (4,),
    "num_bessel": 3,
    "readout_width": 3,
}
OPEN = {"embed_charge": True, "max_charge": 2, "max_multiplicity": 3, "embedding_readout": True}
STATES = ({}, {"charge": 1}, {"charge": -1}, {"charge": -1, "multiplicity": 3})


def potential(**options: object) -> Potential:
    torch.manual_seed(0)
    return Potential(MACENonlinear(MACENonlinearConfig(**{**SMALL, **options}), SPECIES).double())


def open_potential() -> Potential:
    return potential(**OPEN)


def methyl(**info: int) -> Frame:
    places = np.array([[0.0, 0.0, 0.1], [1.08, 0.0, 0.0], [-0.54, 0.93, 0.0], [-0.5, -0.95, 0.1]])
    return Frame(np.array([6, 1, 1, 1]), places, info=info)


@pytest.fixture(scope="module")
def graph() -> AtomGraph:
    return frames_to_batch([methyl(**info) for info in STATES], SPECIES, 5.0).graph


def test_each_charge_and_multiplicity_has_its_own_energy_and_forces(graph: AtomGraph) -> None:
    model = open_potential()
    with torch.no_grad():
        together = model(graph)
        alone = [model(frames_to_batch([methyl(**info)], SPECIES, 5.0).graph) for info in STATES]
        fixed = model.with_electrons(-1, 3)(graph)
    assert len({round(energy, 9) for energy in together.energy.tolist()}) == len(STATES)
    torch.testing.assert_close(together.energy, torch.cat([each.energy for each in alone]))
    torch.testing.assert_close(together.forces, torch.cat([each.forces for each in alone]))
    assert (together.forces[:4] - together.forces[4:8]).abs().max() > 1e-6
    torch.testing.assert_close(fixed.energy, together.energy[3:].expand(4), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ((3.0, 1.0), r"charge \+3, and the model knows -2 to 2"),
        ((-3.0, 1.0), "charge -3"),
        ((0.0, 3.0), "multiplicity 4, and the model knows 1 to 3"),
        ((0.0, -1.0), "multiplicity 0"),
    ],
)
def test_a_state_without_features_is_refused(state: tuple[float, float], text: str, graph: AtomGraph) -> None:
    states = graph.electrons.clone()
    states[2] = torch.tensor(state)
    with pytest.raises(InputError, match=text):
        open_potential()(graph._replace(electrons=states))


def test_a_fixed_state_without_features_is_refused() -> None:
    with pytest.raises(InputError, match="charge"):
        open_potential().with_electrons(5, 1)


def test_the_embedding_readout_adds_a_constant_of_species_and_state(graph: AtomGraph) -> None:
    with_it, without = potential(embedding_readout=True), potential()
    without.load_state_dict({k: v for k, v in with_it.state_dict().items() if "embedding_readout" not in k})
    a, b = with_it(graph), without(graph)
    shift = a.atomic_energy - b.atomic_energy
    for species in range(2):
        of_species = shift[graph.species == species]
        assert of_species[0].abs() > 1e-3
        torch.testing.assert_close(of_species, of_species[:1].expand_as(of_species), rtol=0, atol=1e-12)
    torch.testing.assert_close(a.forces, b.forces, rtol=0, atol=1e-12)


def test_the_layer_norm_is_that_of_torch() -> None:
    torch.manual_seed(0)
    ours, theirs = LayerNorm(5).double(), torch.nn.LayerNorm(5).double()
    ours.weight.data.normal_()
    ours.bias.data.normal_()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(7, 5, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)


def test_more_species_leave_the_known_ones_as_they_are(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(potential(), run, {})
    more = start_from(run, ["C", "O"], extend=True)
    assert more.species == ("C", "H", "O")


@pytest.mark.slow
@pytest.mark.compiler
def test_a_native_model_carries_one_state(tmp_path: Path) -> None:
    fixed = open_potential().with_electrons(1, 2).set_dtype(torch.float32)
    assert export_native(fixed, tmp_path / "a.pimlip").deviation < 1e-4


def test_torchscript_carries_one_state(tmp_path: Path) -> None:
    exported = export_torchscript(open_potential().with_electrons(1, 2), tmp_path / "a.nequip.pth")
    assert exported.deviation < 1e-10


def test_the_model_is_traced_for_the_compiled_sweeps() -> None:
    for options in ({}, {"l_max": 3, "distance_transform": "agnesi", "species_cutoffs": (("H", "H", 3.0),)}):
        assert trace_model(potential(**options).model) is not None
    assert trace_model(open_potential().model) is not None


@pytest.mark.compiler
@pytest.mark.slow
def test_compiled_sweeps_learn_what_autograd_learns(graph: AtomGraph) -> None:
    model, found, forces = potential(l_max=2, distance_transform="agnesi", **OPEN), {}, {}
    for backend in ("reference", "cpu"):
        with use_kernels(backend):
            predictions = model(graph)
            (predictions.energy.square().sum() + predictions.forces.square().sum()).backward()
        forces[backend] = predictions.forces.detach()
        found[backend] = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
        model.zero_grad(set_to_none=True)
    torch.testing.assert_close(forces["cpu"], forces["reference"], rtol=1e-9, atol=1e-11)
    assert found["cpu"].keys() == found["reference"].keys()
    for key, gradient in found["reference"].items():
        torch.testing.assert_close(found["cpu"][key], gradient, rtol=1e-8, atol=1e-10, msg=key)


@pytest.mark.parametrize(
    ("options", "key", "allowed"),
    [
        ({"edge_channels": 0}, "edge_channels", ">= 1"),
        ({"edge_l_max": 2}, "edge_l_max", "0 to hidden_l_max, 1"),
        ({"edge_channels": None, "reduce_first": True}, "reduce_first", "edge_channels"),
        ({"radial_hidden": ()}, "radial_hidden", "one or more"),
        ({"hidden_l_max": 3}, "hidden_l_max", "0 to 2"),
        ({"readout_width": 0}, "readout_width", ">= 1"),
        ({"readout_gate": "abs"}, "readout_gate", "silu"),
        ({"max_charge": -1}, "max_charge", ">= 0"),
        ({"max_multiplicity": 0}, "max_multiplicity", ">= 1"),
        ({"correlation": 0}, "correlation", "1, 2, 3 or 4"),
        ({"force_head": "direct"}, "force_head", "conservative"),
    ],
    ids=str,
)
def test_an_option_that_cannot_work_is_refused_by_name(
    options: dict[str, object], key: str, allowed: str
) -> None:
    with pytest.raises(InputError) as error:
        MACENonlinearConfig(**{**SMALL, **options})
    assert error.value.key == key
    assert allowed in str(error.value)


@pytest.mark.parametrize(
    "options", [{}, {"embed_charge": True}, {"reduce_first": True, "num_interactions": 3}]
)
def test_the_least_number_of_weights_is_no_more_than_there_are(options: dict[str, object]) -> None:
    config = MACENonlinearConfig(**{**SMALL, **options})
    count = sum(p.numel() for p in MACENonlinear(config, SPECIES).parameters())
    assert 0 < MACENonlinear.least_weights(config, SPECIES) <= count
