"""Fine-tuning pays for the species of the data alone, low-rank updates are exact, replay keeps what was known."""

import csv
import logging
import os
import signal

import lightning.pytorch as pl
import pytest
import torch
from ase.io import write
from torch.func import functional_call
from typer.testing import CliRunner

from pimlip_zoo import experiment
from pimlip_zoo.cli.report import _gather
from pimlip_zoo.cli.train import app
from pimlip_zoo.config import load_config, parse_settings
from pimlip_zoo.datasets.builtin import load_builtin
from pimlip_zoo.datasets.frame import frame_to_atoms
from pimlip_zoo.errors import InputError
from pimlip_zoo.experiment import run as runs
from pimlip_zoo.experiment.run import training_module
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.registry import get_model
from pimlip_zoo.testing import as_graph, structure
from pimlip_zoo.training.checkpoint import KEY, describe, load_potential
from pimlip_zoo.training.low_rank import Adapters
from pimlip_zoo.training.present import cut_down
from pimlip_zoo.training.recipes import RunFacts, get_recipe

SPECIES = ("He", "H", "C", "N", "O", "F", "Si")
PRESENT = ("H", "C", "O")
SMALL = {
    "nequip": {"num_layers": 2, "channels": 4, "radial_hidden": (4,)},
    "mace": {"channels": 4, "radial_hidden": (4,), "correlation": 2, "l_max": 2},
    "allegro": {
        "scalar_channels": 8,
        "tensor_channels": 4,
        "embed_hidden": (8,),
        "latent_hidden": (8,),
        "readout_hidden": (8,),
    },
}
SETTINGS = [
    "data.train=builtin:ethanol-gfn2/train@:12",
    "data.valid=builtin:ethanol-gfn2/valid@:3",
    "data.batch_size=3",
    "trainer.max_steps=8",
    "trainer.valid_every=4",
]
EXACT = {torch.float32: 3e-6, torch.float64: 1e-12}


def a_potential(name, dtype=torch.float64):
    torch.manual_seed(5)
    info = get_model(name)
    config = info.configure(**{"avg_num_neighbors": 5.0, "cutoff": 4.0, **SMALL[name]})
    references = torch.linspace(-30.0, -3.0, len(SPECIES))
    return Potential(info.model(config, SPECIES).to(dtype), energy_references=references, scale=0.5).eval()


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Runs that know seven species, by architecture."""
    folders = {}
    for name in ("nequip", "mace"):
        potential = a_potential(name, torch.float32)
        folders[name] = tmp_path_factory.mktemp("bases") / name
        (folders[name] / "checkpoints").mkdir(parents=True)
        weights = {f"potential.{key}": value for key, value in potential.state_dict().items()}
        content = {KEY: describe(potential), "state_dict": weights, "global_step": 0}
        torch.save(content, folders[name] / "checkpoints" / "best.ckpt")
    return folders


class SignalAt(pl.Callback):
    def __init__(self, step):
        self.step, self.sent = step, False

    def on_train_batch_start(self, trainer, *args):
        if trainer.global_step == self.step and not self.sent:
            self.sent = True
            os.kill(os.getpid(), signal.SIGTERM)


def prepared(base, *more):
    return experiment.prepare(load_config(None, parse_settings([*SETTINGS, f"finetune.run={base}", *more])))


def train(base, folder, *more, interrupt=None, monkeypatch=None, resume=False):
    """A run, interrupted at a step or resumed."""
    last = folder / "checkpoints" / "last.ckpt" if resume else None
    settings = parse_settings([*SETTINGS, f"finetune.run={base}", *more])
    ready = experiment.prepare(load_config(None, settings), checkpoint=last)
    if interrupt is None:
        return experiment.train(ready, folder, resume=resume)
    make = runs.make_trainer

    def with_signal(*arguments, **more):
        trainer = make(*arguments, **more)
        trainer.callbacks.append(SignalAt(interrupt))
        return trainer

    with monkeypatch.context() as patch:
        patch.setattr(runs, "make_trainer", with_signal)
        return experiment.train(ready, folder, resume=resume)


def content(folder, name="last"):
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


# ---- absent species


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", list(SMALL))
def test_a_potential_cut_down_to_some_species_is_the_same_potential(name, dtype):
    whole = a_potential(name, dtype)
    small, undo = cut_down(whole, PRESENT)
    assert small.species == PRESENT
    assert undo is not None
    frame = structure("molecule", PRESENT, seed=1)
    for skewed in (frame, structure("crystal", PRESENT, seed=2)):
        one = whole(as_graph(skewed, whole.species, whole.cutoff))
        other = small(as_graph(skewed, small.species, small.cutoff))
        torch.testing.assert_close(other.energy, one.energy, rtol=EXACT[dtype], atol=EXACT[dtype])
        torch.testing.assert_close(other.forces, one.forces, rtol=EXACT[dtype], atol=10 * EXACT[dtype])
    again = undo.weights(small, small.state_dict())
    for key, value in whole.state_dict().items():
        assert torch.equal(again[key], value), key


def test_a_potential_whose_species_are_all_there_is_left_as_it_is():
    whole = a_potential("nequip")
    assert cut_down(whole, [*SPECIES, "Xe"]) == (whole, None)
    assert cut_down(whole, []) == (whole, None)


@pytest.mark.parametrize("name", ["nequip", "mace"])
def test_the_optimiser_holds_the_species_of_the_data_and_the_run_all_of_them(bases, tmp_path, name):
    ready = prepared(bases[name])
    assert set(ready.potential.species) == set(PRESENT)
    optimizer = training_module(ready).configure_optimizers()["optimizer"]
    held = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    assert held < sum(p.numel() for p in load_potential(bases[name]).model.parameters())
    train(bases[name], tmp_path / "run")
    before, after = load_potential(bases[name]), load_potential(tmp_path / "run")
    assert after.species == before.species == SPECIES
    absent = [SPECIES.index(symbol) for symbol in SPECIES if symbol not in PRESENT]
    present = [SPECIES.index(symbol) for symbol in PRESENT]
    embedding = [p.model.species_embedding for p in (before, after)]
    assert torch.equal(embedding[0][absent], embedding[1][absent])
    assert not torch.equal(embedding[0][present], embedding[1][present])
    assert torch.equal(before.energy_references[absent], after.energy_references[absent])


def test_the_run_names_all_parameters_as_its_report_does_and_those_that_are_trained(bases, tmp_path):
    settings = ["--set", "trainer.max_steps=1", *given(SETTINGS[:3])]
    out = CliRunner().invoke(app, ["--from", str(bases["nequip"]), "--out", str(tmp_path / "run"), *settings])
    assert out.exit_code == 0, out.output
    whole, small = count(a_potential("nequip")), count(cut_down(a_potential("nequip"), PRESENT)[0])
    assert small < whole
    assert f"{whole:,} parameters ({small:,} without those of absent species)" in " ".join(out.output.split())
    assert _gather(tmp_path / "run").facts["Parameters"] == f"{whole:,}"


def given(settings):
    return [part for setting in settings for part in ("--set", setting)]


def count(potential):
    return sum(weights.numel() for weights in potential.model.parameters())


# ---- low-rank updates


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["nequip", "mace"])
def test_low_rank_updates_start_at_the_base_and_merge_exactly(name, dtype):
    potential = cut_down(a_potential(name, dtype), PRESENT)[0].train()
    graph = as_graph(structure("molecule", PRESENT, seed=3), potential.species, potential.cutoff)
    start = potential(graph)
    adapters = Adapters(potential, 2, seed=1)
    adapters.merge()
    assert torch.equal(potential(graph).energy, start.energy), "zero at the start"
    for _, b in adapters.factors.values():
        b.data.normal_(generator=torch.Generator().manual_seed(4))
    unmerged = {
        f"model.{key}": adapters.base[key]
        + (torch.einsum("sir,sro->iso", *pair) if adapters.base[key].dim() == 3 else pair[0] @ pair[1])
        for key, pair in adapters.factors.items()
    }
    expected = functional_call(potential, unmerged, (graph,))
    adapters.merge()
    found = potential(graph)
    for one, other in ((found.energy, expected.energy), (found.forces, expected.forces)):
        scale = float(other.detach().abs().max())
        torch.testing.assert_close(one, other, rtol=0.0, atol=EXACT[dtype] * max(scale, 1.0))
    # The gradients of the factors are those of autograd through W + A B.
    factors = [factor for pair in adapters.factors.values() for factor in pair]
    loss = expected.forces.square().sum() + expected.energy.sum()
    wanted = torch.autograd.grad(loss, factors, allow_unused=True)
    potential.zero_grad()
    (found.forces.square().sum() + found.energy.sum()).backward()
    adapters.project()
    for factor, gradient in zip(factors, wanted, strict=True):
        if gradient is not None:
            size = float(gradient.abs().max()) + 1e-3
            torch.testing.assert_close(factor.grad, gradient, rtol=0.0, atol=100 * EXACT[dtype] * size)
    assert all(weight.grad is None for weight in adapters.maps.values())


def test_a_run_with_low_rank_updates_moves_maps_by_their_rank_and_nothing_else(bases, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="pimlip_zoo"):
        train(bases["mace"], tmp_path / "run", "finetune.lora=2")
    saved = content(tmp_path / "run")
    trained = sum(
        saved["low_rank_updates"][part][key].numel()
        for part in "ab"
        for key in saved["low_rank_updates"]["a"]
    )
    assert f"{trained} numbers are trained" in caplog.text
    before = load_potential(bases["mace"]).state_dict()
    moved = 0
    for key, value in load_potential(tmp_path / "run", which="last").state_dict().items():
        adapted = key.removeprefix("model.") in saved["low_rank_updates"]["a"]
        if not adapted and key != "energy_references":
            assert torch.equal(value, before[key]), key
        moved += adapted and not torch.equal(value, before[key])
    assert moved > 5
    current = saved["current_model_state"]
    for key, base in saved["low_rank_updates"]["base"].items():
        change = (current[f"potential.model.{key}"] - base).double()
        change = change.transpose(0, 1) if change.dim() == 3 else change.unsqueeze(0)
        singular = torch.linalg.svdvals(change)
        assert bool((singular[:, 2:] < 1e-6).all()), key  # rounding of weights of size one
        assert float(singular.max()) > 1e-4, key


@pytest.mark.parametrize(
    "options", [(), ("finetune.lora=2",), ("finetune.replay=3", "finetune.replay_weight=0.5")]
)
def test_fine_tuning_resumes_bit_by_bit(bases, tmp_path, monkeypatch, options):
    train(bases["mace"], tmp_path / "whole", *options)
    outcome = train(bases["mace"], tmp_path / "parts", *options, interrupt=5, monkeypatch=monkeypatch)
    assert outcome.signal == signal.SIGTERM
    train(bases["mace"], tmp_path / "parts", *options, resume=True)
    whole, parts = content(tmp_path / "whole"), content(tmp_path / "parts")
    for key in ("state_dict", "current_model_state"):
        for name, value in whole[key].items():
            assert torch.equal(value, parts[key][name]), name
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("finetune.lora=2", "optimizer.name=muon"), "muon"),
        (("finetune.replay_weight=2",), "nothing is replayed"),
        (("finetune.replay_batch=4",), "nothing is replayed"),
        (("finetune.replay=missing.extxyz",), "missing.extxyz"),
        (("finetune.lora=2", "finetune.freeze=[layers, readouts]"), "no linear map"),
    ],
)
def test_options_that_cannot_work_are_refused(bases, options, text):
    with pytest.raises(InputError, match=text):
        training_module(prepared(bases["mace"], *options))


@pytest.mark.parametrize("option", ["lora=2", "replay=3"])
def test_without_a_run_there_is_nothing_to_fine_tune(option):
    with pytest.raises(InputError, match="nothing to fine-tune"):
        load_config(None, parse_settings([*SETTINGS, f"finetune.{option}"]))


# ---- replay


@pytest.mark.parametrize("weights", [{}, {"config_weight": 0.2}, {"config_forces_weight": 0.0}])
def test_weights_of_structures_to_replay_are_said_to_be_ignored(bases, tmp_path, caplog, weights):
    atoms = frame_to_atoms(load_builtin("ethanol-gfn2/valid")[0])
    atoms.info |= weights
    write(tmp_path / "others.extxyz", atoms)
    training_module(prepared(bases["mace"], f"finetune.replay={tmp_path}/others.extxyz"))
    assert ("weights of structures are not looked at" in caplog.text) == bool(weights)


@pytest.mark.parametrize(("options", "said"), [((), False), (("finetune.replay_batch=3",), True)])
def test_a_batch_of_more_structures_than_are_replayed_is_said_to_be_cut(bases, caplog, options, said):
    training_module(prepared(bases["mace"], "finetune.replay=1", *options))
    assert ("there are 1 structures, so 1 are looked at in a step, not 3" in caplog.text) == said


def test_what_is_replayed_is_zero_at_the_start_and_keeps_what_was_known(bases, tmp_path):
    rate = "optimizer.lr=0.01"
    ready = prepared(bases["mace"], rate, "finetune.replay=4")
    module = training_module(ready)
    batch = ready.train[0]
    parts = module.loss(batch)[1]
    assert float(parts["replay"].value) < 1e-9
    assert float(parts["forces"].value) > 1e-3
    term = ready.extra_terms[0]
    errors = {}
    for name, more in (("with", ("finetune.replay=4", "finetune.replay_weight=100")), ("without", ())):
        train(bases["mace"], tmp_path / name, rate, *more)
        small, _ = cut_down(load_potential(tmp_path / name, which="last"), PRESENT)
        forces = torch.cat([small(sample.graph).forces.detach() for sample in term.samples])
        errors[name] = float((forces - term.forces).square().mean())
    assert errors["with"] < errors["without"]


# ---- the recipe


def test_a_run_that_starts_from_another_has_the_recipe_for_that(bases, caplog):
    with caplog.at_level(logging.INFO, logger="pimlip_zoo"):
        config = prepared(bases["mace"]).config
    assert (config.recipe.name, config.recipe.version) == ("finetune", 2)
    assert (config.optimizer.name, config.optimizer.lr) == ("adamw", pytest.approx(1e-3))
    assert "rate 0.001 for 12 structures" in caplog.text
    assert prepared(bases["mace"], "recipe.name=default").config.recipe.name == "default"
    first = prepared(bases["mace"], "recipe.version=1").config
    assert (first.recipe.name, first.recipe.version, first.optimizer.name) == ("finetune", 1, "adamw")
    assert first.optimizer.lr == pytest.approx(1e-3)
    assert prepared(bases["mace"], "optimizer.lr=2e-4").config.optimizer.lr == pytest.approx(2e-4)


def test_low_rank_updates_have_the_optimiser_that_can_train_them(bases, caplog):
    with caplog.at_level(logging.INFO, logger="pimlip_zoo"):
        many = "data.train=builtin:ethanol-gfn2/train@:30"
        plain = prepared(bases["mace"], many).config
        low = prepared(bases["mace"], many, "finetune.lora=2").config
    assert (plain.optimizer.name, plain.optimizer.lr) == ("muon", pytest.approx(2e-3))
    assert (low.optimizer.name, low.optimizer.lr) == ("adamw", pytest.approx(3e-3))
    assert "rate 0.003 for 30 structures" in caplog.text


@pytest.mark.parametrize(
    ("structures", "steps", "rate", "batch"),
    [(10, 500, 1e-3, 4), (50, 2_000, 3e-3, 4), (10_000, 20_000, 3e-3, 4)],
)
def test_steps_and_rate_follow_the_number_of_structures(structures, steps, rate, batch):
    facts = RunFacts(
        "nequip",
        frozenset(),
        direct=False,
        structures=structures,
        labels=("forces",),
        passes=1.0,
        atoms=24 * structures,
    )
    settings, newest = (get_recipe("finetune", version).settings(facts) for version in (1, 2))
    few = structures < 25
    assert newest == (settings if few else {**settings, "optimizer.name": "muon", "optimizer.lr": 0.002})
    assert settings["trainer.max_steps"] == steps
    assert settings["optimizer.lr"] == pytest.approx(rate)
    assert settings["data.batch_size"] == batch


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_an_optimiser_that_is_given_has_the_rate_that_is_its_own(bases, optimizer):
    """The rate of fresh weights, ten times as high, lets a trained potential forget."""
    few = prepared(bases["nequip"], f"optimizer.name={optimizer}").config
    many = "data.train=builtin:ethanol-gfn2/train@:30"
    more = prepared(bases["nequip"], many, f"optimizer.name={optimizer}").config
    rates = {"adamw": (1e-3, 3e-3), "muon": (0.002, 0.002)}[optimizer]
    assert (few.optimizer.name, more.optimizer.name) == (optimizer, optimizer)
    assert (few.optimizer.lr, more.optimizer.lr) == rates
