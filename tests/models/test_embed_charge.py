import numpy as np
import pytest
import torch
from ase import Atoms

import pimlip_zoo
from pimlip_zoo.compiled.kernels import use_kernels
from pimlip_zoo.consistency.displaced import choose, displaced_copies
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.neighbours import frames_to_batch
from pimlip_zoo.deploy.ase import PimlipCalculator
from pimlip_zoo.deploy.torchscript import export_torchscript
from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import join
from pimlip_zoo.models.base import AtomicEnergyModel, ModelConfig
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.registry import get_model

SPECIES = ("C", "H")
SMALL = {
    "nequip": {"num_layers": 2, "channels": 4, "l_max": 1, "radial_hidden": (4,), "num_bessel": 3},
    "mace": {"channels": 4, "l_max": 1, "correlation": 2, "radial_hidden": (4,), "num_bessel": 3},
    "allegro": {"num_layers": 1, "l_max": 1, "scalar_channels": 4, "tensor_channels": 2, "num_bessel": 3},
}


def potential(name, **options):
    torch.manual_seed(0)
    info = get_model(name)
    preset = "small" if info.presets else None
    config = info.configure(preset, avg_num_neighbors=3.0, **SMALL[name], **options)
    return Potential(info.model(config, SPECIES).double())


def methyl(**info):
    places = np.array([[0.0, 0.0, 0.1], [1.08, 0.0, 0.0], [-0.54, 0.93, 0.0], [-0.5, -0.95, 0.1]])
    return Frame(np.array([6, 1, 1, 1]), places, info=info)


STATES = ({}, {"charge": 1}, {"charge": -1}, {"charge": -1, "multiplicity": 3})


@pytest.fixture(scope="module")
def graph():
    return frames_to_batch([methyl(**info) for info in STATES], SPECIES, 5.0).graph


@pytest.mark.parametrize("head", ["conservative", "direct"])
@pytest.mark.parametrize("name", sorted(SMALL))
def test_each_charge_and_multiplicity_has_its_own_energy_and_forces(name, head, graph):
    model = potential(name, embed_charge=True, force_head=head)
    with use_kernels("reference"), torch.no_grad():
        together = model(graph)
        alone = [model(frames_to_batch([methyl(**info)], SPECIES, 5.0).graph) for info in STATES]
    assert len({round(energy, 9) for energy in together.energy.tolist()}) == len(STATES)
    torch.testing.assert_close(together.energy, torch.cat([each.energy for each in alone]))
    torch.testing.assert_close(together.forces, torch.cat([each.forces for each in alone]))
    assert (together.forces[:4] - together.forces[4:8]).abs().max() > 1e-6


def test_nequip_with_channels_for_each_degree_sees_charges_too(graph):
    model = potential("nequip", embed_charge=True, channels_by_degree=(6, 4))
    with use_kernels("reference"), torch.no_grad():
        energies = model(graph).energy.tolist()
        ion = model.with_electrons(-1, 3)(graph).energy.tolist()
    assert len({round(energy, 9) for energy in energies}) == len(STATES)
    assert ion == pytest.approx([energies[3]] * len(STATES), abs=1e-9)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_neutral_closed_shells_are_what_they_are_without_the_embedding(name, graph):
    plain, embedded = potential(name), potential(name, embed_charge=True)
    assert not any("electrons" in key for key in plain.state_dict())
    embedded.load_state_dict({**embedded.state_dict(), **plain.state_dict()})
    neutral = graph._replace(electrons=torch.zeros_like(graph.electrons))
    with use_kernels("reference"), torch.no_grad():
        expected = plain(graph)
        for ours in (embedded(neutral), embedded(graph._replace(electrons=None)), plain(neutral)):
            assert torch.equal(ours.energy, expected.energy)
            assert torch.equal(ours.forces, expected.forces)


@pytest.mark.compiler
@pytest.mark.parametrize("name", ["nequip", pytest.param("mace", marks=pytest.mark.slow)])
def test_compiled_sweeps_learn_the_embedding_as_autograd_does(name, graph):
    model, found = potential(name, embed_charge=True), {}
    for backend in ("reference", "cpu"):
        with use_kernels(backend):
            predictions = model(graph)
            (predictions.energy.square().sum() + predictions.forces.square().sum()).backward()
        found[backend] = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
        model.zero_grad(set_to_none=True)
    assert any("electrons" in key for key in found["cpu"])
    for key, gradient in found["reference"].items():
        torch.testing.assert_close(found["cpu"][key], gradient, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_one_charge_given_once_is_that_charge(name, graph):
    model = potential(name, embed_charge=True)
    fixed = model.with_electrons(-1, 3)
    with use_kernels("reference"), torch.no_grad():
        torch.testing.assert_close(fixed(graph).energy[3], model(graph).energy[3], rtol=0, atol=1e-12)
        assert torch.equal(fixed(graph).energy[0], fixed(graph).energy[3])
    with pytest.raises(InputError, match="does not know charge"):
        fixed.with_electrons(0)
    with pytest.raises(InputError, match="2S"):
        model.with_electrons(0, 0)


def test_an_export_is_for_one_charge_and_says_so(tmp_path):
    with pytest.raises(InputError, match="--charge Q --multiplicity M"):
        export_torchscript(potential("nequip", embed_charge=True), tmp_path / "a.nequip.pth")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SMALL))
def test_torchscript_carries_one_charge(tmp_path, name):
    model = potential(name, embed_charge=True)
    assert export_torchscript(model.with_electrons(1, 2), tmp_path / "a.nequip.pth").deviation < 1e-10


def test_torch_sim_states_no_charges_and_is_refused_an_open_model():
    pytest.importorskip("torch_sim")
    from pimlip_zoo.deploy.torchsim import TorchSimModel

    with pytest.raises(InputError, match="with_electrons"):
        TorchSimModel(potential("nequip", embed_charge=True))


@pytest.mark.slow
@pytest.mark.compiler
@pytest.mark.parametrize("name", sorted(SMALL))
def test_native_models_carry_one_charge(tmp_path, name):
    from pimlip_zoo.deploy.native.export import export_native

    fixed = potential(name, embed_charge=True).with_electrons(1, 2).set_dtype(torch.float32)
    assert export_native(fixed, tmp_path / "a.pimlip").deviation < 1e-4
    calculator = pimlip_zoo.calculator(tmp_path / "a.pimlip")
    atoms = Atoms("CH3", methyl().positions, calculator=calculator)
    atoms_too = Atoms("CH3", methyl().positions, calculator=PimlipCalculator(fixed))
    assert atoms.get_potential_energy() == pytest.approx(atoms_too.get_potential_energy(), abs=1e-5)


def test_ase_gets_the_charge_from_info_from_initial_charges_or_once_for_all(graph):
    model = potential("nequip", embed_charge=True)
    with use_kernels("reference"):
        expected = model(graph).energy.tolist()
        atoms = Atoms("CH3", methyl().positions, calculator=PimlipCalculator(model))
        assert atoms.get_potential_energy() == pytest.approx(expected[0], abs=1e-12)
        atoms.info["charge"] = 1
        assert atoms.get_potential_energy() == pytest.approx(expected[1], abs=1e-12)
        atoms.info.clear()
        atoms.set_initial_charges([-1, 0, 0, 0])
        atoms.set_initial_magnetic_moments([2, 0, 0, 0])
        assert atoms.get_potential_energy() == pytest.approx(expected[3], abs=1e-12)
        once = PimlipCalculator(model, charge=-1, multiplicity=1)
        assert once.get_potential_energy(atoms) == pytest.approx(expected[2], abs=1e-12)
        with pytest.raises(InputError, match="impossible"):
            PimlipCalculator(model, charge=0, multiplicity=3).get_potential_energy(atoms)
    with pytest.raises(InputError, match="embed_charge=true"):
        PimlipCalculator(potential("nequip"), charge=1)


def test_displaced_joined_and_chosen_graphs_keep_their_electrons(graph):
    twice = displaced_copies(graph, [None, torch.zeros_like(graph.positions)])
    assert torch.equal(twice.electrons, graph.electrons.repeat(2, 1))
    assert torch.equal(join([graph, graph]).electrons, graph.electrons.repeat(2, 1))
    batch = frames_to_batch([methyl(**info) for info in STATES], SPECIES, 5.0)
    part, _ = choose(batch, None, torch.tensor([False, True, False, True]))
    assert torch.equal(part.graph.electrons, graph.electrons[[1, 3]])


def test_an_architecture_that_embeds_nothing_refuses():
    class Simple(AtomicEnergyModel):
        pass

    Simple(ModelConfig(), SPECIES)
    with pytest.raises(InputError, match="Simple does not embed charge"):
        Simple(ModelConfig(embed_charge=True), SPECIES)
