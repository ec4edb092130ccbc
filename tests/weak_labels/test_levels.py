"""Several levels of theory in one run: a readout for each, kept with it and chosen afterwards."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import pimlip_zoo
from pimlip_zoo.cli import app
from pimlip_zoo.config import load_config
from pimlip_zoo.datasets.builtin import load_builtin
from pimlip_zoo.datasets.frame import frame_to_atoms
from pimlip_zoo.datasets.lmdb import write_store
from pimlip_zoo.datasets.neighbours import frame_to_sample
from pimlip_zoo.datasets.readers import load_frames
from pimlip_zoo.datasets.statistics import composition_matrix
from pimlip_zoo.deploy.loading import load_exported
from pimlip_zoo.errors import InputError
from pimlip_zoo.evaluation import evaluate
from pimlip_zoo.experiment.stages import Run, prepare_run, train_run
from pimlip_zoo.graph import collate
from pimlip_zoo.models.base import AtomicEnergyModel, ModelConfig
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.registry import MODELS, register_model
from pimlip_zoo.training.checkpoint import checkpoint_path, load_potential, read_checkpoint
from pimlip_zoo.weak_labels.levels import Level, LevelOptions, _moved, _offset

EMT = {"calculator": "emt", "quantities": ["forces"], "batch_size": 2}
FILE = {"data": "builtin:ethanol-gfn2@20:30", "name": "old"}


def levels_of(run):
    return ("reference", *read_checkpoint(checkpoint_path(run)).get("levels", {}))


def settings(tmp_path, *levels, **options):
    values = {
        "data.train": "builtin:ethanol-gfn2@0:8",
        "data.valid": "builtin:ethanol-gfn2/valid@0:4",
        "data.batch_size": 4,
        "model.channels": 4,
        "model.l_max": 1,
        "trainer.max_steps": 4,
        "trainer.valid_every": 2,
        "trainer.device": "cpu",
    }
    if levels:
        values |= {
            "weak.levels": list(levels),
            "weak.labels.cache": str(tmp_path / "cache"),
        }
    if any(isinstance(level, dict) and "calculator" in level and level.get("weight", 1) for level in levels):
        values |= {"weak.labels.pool.structures": 6, "weak.labels.pool.method": "displaced"}
    return list((values | options).items())


def prepared(tmp_path, *levels, **options):
    return prepare_run(load_config(None, settings(tmp_path, *levels, **options)))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Energies of the reference, forces of EMT, a file with both."""
    folder = tmp_path_factory.mktemp("levels")
    experiment = prepared(folder, EMT, FILE, **{"data.labels": ["energy"], "trainer.ema_decay": 0.5})
    train_run(experiment, folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def graph():
    frames = load_frames("builtin:ethanol-gfn2/valid@0:3")
    return collate([frame_to_sample(frame, ("H", "C", "O"), 5.0) for frame in frames]).graph


def test_a_run_keeps_a_readout_for_each_level_and_shares_everything_else(run):
    assert levels_of(run) == ("reference", "emt", "old")
    reference = load_potential(run).state_dict()
    assert all(
        torch.equal(value, reference[name])
        for name, value in load_potential(run, level="reference").state_dict().items()
    )
    own = {
        level: {
            name
            for name, value in load_potential(run, level=level).state_dict().items()
            if not torch.equal(value, reference[name])
        }
        for level in ("emt", "old")
    }
    # EMT's energies are not learnt: they stay on the zero of the reference.
    assert own == {
        "emt": {"model.readout.weights.0"},
        "old": {"model.readout.weights.0", "energy_references"},
    }


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_loaded_level_predicts_what_was_trained(tmp_path, graph, dtype):
    experiment = prepared(
        tmp_path, FILE, **{"trainer.dtype": dtype, "trainer.ema_decay": 0.0, "trainer.keep": "last"}
    )
    seen = []
    labels = experiment.config.weak.labels
    recipe = labels.recipe()
    make = recipe.term

    def term(*arguments):
        seen.append(make(*arguments))
        return seen[-1]

    recipe.term = term
    recipe.train(Run(experiment, labels, tmp_path / "run"))
    (taught,) = seen
    loaded = load_potential(tmp_path / "run", level="old")
    assert loaded.model.dtype == getattr(torch, dtype)
    with torch.no_grad():
        for mine, trained in zip(loaded(graph), taught._twin[0](graph), strict=True):
            torch.testing.assert_close(mine, trained, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["torchscript", "checkpoint"])
def test_an_exported_level_is_that_level_of_the_run_and_stands_alone(run, graph, tmp_path, kind):
    target = tmp_path / ("model.ckpt" if kind == "checkpoint" else "model.nequip.pth")
    arguments = ["export", str(run), "--format", kind, "--level", "old", "-o", str(target)]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    expected = load_potential(run, level="old")(graph)
    if kind == "checkpoint":
        found = load_potential(target)(graph)
        assert torch.equal(found.energy, expected.energy)
        assert torch.equal(found.forces, expected.forces)
        assert levels_of(target) == ("reference",)
        return
    _, metadata = load_exported(target)
    assert json.loads(metadata["training"])["level"] == "old"
    atoms = frame_to_atoms(load_frames("builtin:ethanol-gfn2/valid@0:1")[0])
    other = load_potential(run)(graph)
    atoms.calc = pimlip_zoo.calculator(run, level="old")
    assert atoms.get_potential_energy() == pytest.approx(float(expected.energy[0]), abs=1e-5)
    assert abs(float(other.energy[0]) - atoms.get_potential_energy()) > 1e-3


def test_commands_take_a_level_and_errors_are_those_of_its_energies(run, tmp_path):
    def rmse(*level):
        file = tmp_path / "errors.json"
        arguments = ["eval", str(run), "--data", FILE["data"], "--json", str(file), *level]
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return json.loads(file.read_text())["energy_per_atom"]["rmse"]

    direct = evaluate(load_potential(run, level="old"), FILE["data"]).summary["energy_per_atom"]["rmse"]
    assert rmse("--level", "old") == pytest.approx(direct, rel=1e-6)
    assert rmse() != rmse("--level", "old")
    arguments = ["md", str(run), "--structure", "builtin:ethanol-gfn2@0", "--steps", "2", "--level", "emt"]
    result = CliRunner().invoke(app, [*arguments, "--reactive", "--out", str(tmp_path / "md")])
    assert (tmp_path / "md" / "log.csv").exists(), result.output


def test_a_level_of_weight_zero_is_as_if_it_were_not_there(tmp_path):
    weights = []
    for number, levels in enumerate([(), ({**EMT, "weight": 0.0},)]):
        folder = tmp_path / str(number)
        train_run(prepared(tmp_path, *levels), folder)
        weights.append(load_potential(folder).state_dict())
        assert levels_of(folder) == ("reference",)
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert not (tmp_path / "cache").exists()  # nothing was sampled


def test_energies_of_the_reference_and_forces_of_another_level_teach_the_reference_forces(tmp_path):
    errors = {}
    forces = {"data": "builtin:ethanol-gfn2@20:60", "name": "low", "quantities": ["forces"]}
    for name, levels in {"energies alone": (), "with forces": (forces,)}.items():
        options = {
            "data.labels": ["energy"],
            "trainer.max_steps": 40,
            "trainer.valid_every": 40,
            "schedule.warmup_steps": 5,
            "potential.scale": 1.0,
        }
        train_run(prepared(tmp_path, *levels, **options), tmp_path / name)
        potential = load_potential(tmp_path / name)
        summary = evaluate(potential, "builtin:ethanol-gfn2/valid@0:20").summary
        errors[name] = summary["forces"]["rmse"]
    assert errors["with forces"] < 0.7 * errors["energies alone"]


def test_a_level_may_have_energies_alone_beside_reference_forces(tmp_path):
    energies = {**FILE, "quantities": ["energy"]}
    experiment = prepared(tmp_path, energies, **{"data.labels": ["forces"], "trainer.max_steps": 2})
    train_run(experiment, tmp_path / "run")
    frames = load_frames(FILE["data"])
    predicted = load_potential(tmp_path / "run", level="old")
    graph = collate([frame_to_sample(frame, predicted.species, 5.0) for frame in frames]).graph
    error = predicted(graph, forces=False).energy.mean() - np.mean([frame.energy for frame in frames])
    assert abs(error) < 5.0  # on the level's own zero; the molecule has -310 eV
    assert abs(load_potential(tmp_path / "run")(graph, forces=False).energy.mean()) < 20.0


SHIFT = {1: 0.5, 6: -3.0, 8: 7.0}


def test_energies_of_each_level_have_offsets_by_species_of_their_own(tmp_path):
    frames = load_builtin("ethanol-gfn2")[:12]
    moved = [replace(f, energy=f.energy + sum(SHIFT[int(z)] for z in f.numbers)) for f in frames]
    write_store(tmp_path / "moved.lmdb", moved)
    experiment = prepared(tmp_path, EMT)
    run = Run(experiment, experiment.config.weak.labels, tmp_path / "run")
    reference = experiment.potential.energy_references.numpy(force=True)
    (counts,) = composition_matrix(frames[:1], experiment.potential.species)

    own = _moved(run, run.structures(str(tmp_path / "moved.lmdb")))
    same = _moved(run, run.structures("builtin:ethanol-gfn2@0:12"))
    assert counts @ (own - same) == pytest.approx(sum(SHIFT[int(z)] for z in frames[0].numbers), abs=1e-8)
    mean = [np.mean([f.energy for f in part]) for part in (experiment.frames, frames)]
    assert counts @ (same - reference) == pytest.approx(mean[1] - mean[0], abs=1e-8)

    cheap = run.cheap_labels(list(experiment.frames), "emt")
    between = np.mean([a.energy - b.energy for a, b in zip(experiment.frames, cheap, strict=True)])
    assert counts @ (reference - _offset(run, "emt")) == pytest.approx(between, abs=1e-8)


def test_levels_of_one_run_draw_different_batches_and_a_store_is_read_as_needed(tmp_path):
    write_store(tmp_path / "other.lmdb", load_builtin("ethanol-gfn2")[20:30])
    stored = {"data": str(tmp_path / "other.lmdb")}
    experiment = prepared(tmp_path, {**FILE, "batch_size": 3}, {**stored, "batch_size": 3})
    run = Run(experiment, experiment.config.weak.labels, tmp_path / "run")
    recipe = experiment.config.weak.labels.recipe()
    frames = [run.structures(option.data) for option in recipe.options.levels]
    first, second = (
        recipe.term(run, number, Level(option.called, frames[number], ("energy", "forces"), None))
        for number, option in enumerate(recipe.options.levels)
    )
    assert frames[1].source is not None
    assert [option.called for option in recipe.options.levels] == ["old", "other"]
    assert first.seed != second.seed
    assert len(second.pool.samples) == 10


def test_a_resumed_run_with_another_file_of_a_level_is_refused(tmp_path):
    frames = load_builtin("ethanol-gfn2")
    file = tmp_path / "other.lmdb"
    write_store(file, frames[20:30])
    level = {"data": str(file), "name": "old"}
    train_run(prepared(tmp_path, level), tmp_path / "run")
    config = load_config(tmp_path / "run" / "config.yaml", complete=True)
    prepare_run(config, resumes=tmp_path / "run")
    file.unlink()
    write_store(file, frames[21:31])
    with pytest.raises(InputError, match=r"weak\.levels: the level old structures are not those of the run"):
        prepare_run(config, resumes=tmp_path / "run")


@dataclass(frozen=True, kw_only=True)
class _TinyConfig(ModelConfig):
    """Of an architecture of somebody else."""


class _Tiny(AtomicEnergyModel):
    """Energies of pairs."""

    def __init__(self, config, species):
        super().__init__(config, species)
        self.width = nn.Parameter(torch.ones(3))
        self.last = nn.Linear(3, 1, bias=False)

    def forward(self, graph, vectors):
        near = torch.exp(-vectors.square().sum(1, keepdim=True) * self.width)
        features = near.new_zeros((len(graph.positions), 3)).index_add(0, graph.edge_index[0], near)
        return self.last(features).squeeze(-1)


@pytest.mark.parametrize("said", [True, False])
def test_an_architecture_of_somebody_else_has_levels_once_it_names_its_readouts(tmp_path, monkeypatch, said):
    MODELS.all()
    monkeypatch.setattr(MODELS, "_items", dict(MODELS._items))
    kind = type("Tiny", (_Tiny,), {"readout_modules": ("last",) if said else ()})
    register_model("tiny", config=_TinyConfig)(kind)
    values = dict(settings(tmp_path, FILE, **{"model.name": "tiny", "model.preset": None}))
    values = [(key, v) for key, v in values.items() if key not in ("model.channels", "model.l_max")]
    if not said:
        with pytest.raises(InputError, match="Tiny does not say which of its modules are readouts"):
            prepare_run(load_config(None, values))
        return
    train_run(prepare_run(load_config(None, values)), tmp_path / "run")
    one, other = load_potential(tmp_path / "run"), load_potential(tmp_path / "run", level="old")
    assert not torch.equal(one.model.last.weight, other.model.last.weight)
    assert torch.equal(one.model.width, other.model.width)


@pytest.mark.parametrize("model", ["allegro", "mace"])
@pytest.mark.parametrize("head", ["conservative", "direct"])
def test_every_architecture_and_head_keeps_levels(tmp_path, graph, model, head):
    own = {"allegro": {"model.tensor_channels": 4}, "mace": {"model.channels": 4}}[model]
    options = {"model.name": model, "model.force_head": head, "trainer.max_steps": 2}
    values = [
        (k, v) for k, v in settings(tmp_path, FILE, **options) if k not in ("model.channels", "model.l_max")
    ]
    values += own.items()
    train_run(prepare_run(load_config(None, values)), tmp_path / "run")
    one, other = load_potential(tmp_path / "run")(graph), load_potential(tmp_path / "run", level="old")(graph)
    assert (one.energy - other.energy).abs().max() > 1e-4
    assert (one.forces - other.forces).abs().max() > 1e-7


@pytest.mark.parametrize(
    ("levels", "options", "match"),
    [
        ([EMT, EMT], {}, "two levels are called 'emt'"),
        ([], {"weak.levels": []}, "no level is given"),
        ([{"calculator": "emt", "wieght": 2}], {}, "no option 'wieght'.*weight"),
        ([{"quantities": ["forces"]}], {}, "neither a calculator nor data"),
        ([{**EMT, "data": "x.extxyz"}], {}, "a calculator and data"),
        ([{**EMT, "name": "reference"}], {}, "'reference' is the level of the reference labels"),
        ([{**EMT, "name": "a b"}], {}, "'a b' is no name for a level"),
        ([{**EMT, "quantities": []}], {}, "has no quantities"),
        ([{**EMT, "weight": -1}], {}, "weak.labels.levels.0.weight: .*greater than or equal to 0"),
        ([EMT], {"weak.levels": "emt"}, "'emt' is no list of levels"),
        ([EMT], {"weak.levels": ["emt"]}, "'emt' is no level"),
        ([EMT], {"weak.preset": "gfn2"}, "levels are a recipe of their own, and pretrain is another"),
        ([EMT], {"weak.labels.calculator": "gfn1"}, "the recipe levels does not ask gfn1"),
        ([{"calculator": "gnf2"}], {}, "no calculator is called 'gnf2'"),
        ([{"data": "nowhere.extxyz"}], {}, "nowhere.extxyz"),
        (
            [{**FILE, "quantities": ["stress"]}],
            {},
            "no structure of level old .* has stress .*it has energy, forces",
        ),
        ([{"data": "builtin:cual-emt"}], {}, "no structure with reference labels has Al, Cu"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_before_anything_is_done(tmp_path, levels, options, match):
    with pytest.raises(InputError, match=match) as caught:
        prepared(tmp_path, *levels, **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_a_level_that_is_not_there_is_refused_with_those_that_are(run, tmp_path):
    with pytest.raises(InputError, match=r"has no level 'gfn2' \(it has reference, emt, old\)"):
        load_potential(run, level="gfn2")
    train_run(prepared(tmp_path, **{"trainer.max_steps": 1}), tmp_path / "plain")
    with pytest.raises(InputError, match="has a single level of theory"):
        pimlip_zoo.calculator(tmp_path / "plain", level="emt")
    for command in (["eval", str(run), "--data", "x", "--level", "emt", "--uncertainty"],):
        with pytest.raises(InputError, match="looks at the reference level"):
            CliRunner().invoke(app, command, catch_exceptions=False, standalone_mode=False)


def test_damaged_levels_of_a_checkpoint_are_refused(run, tmp_path):
    content = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    for damage in ([], {"emt": 1}, {"emt": {"model.readout.weights.0": torch.tensor([torch.nan])}}):
        torch.save({**content, "levels": damage}, tmp_path / "damaged.ckpt")
        with pytest.raises(InputError, match=r"levels|model\.readout"):
            read_checkpoint(tmp_path / "damaged.ckpt")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda own: own.pop("energy_references"), "energy_references: the level lacks it"),
        (lambda own: own.pop("model.readout.weights.0"), "readout.weights.0: the level lacks it"),
        (lambda own: own.clear(), "lacks it"),
        (lambda own: own.update({name: value > 0 for name, value in own.items()}), "bool, and torch.float"),
        (lambda own: own.update({name: value * 1j for name, value in own.items()}), "complex"),
    ],
)
def test_the_reference_level_does_not_stand_in_for_parts_of_a_level_that_are_missing(
    run, tmp_path, damage, says
):
    content = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    damage(content["levels"]["emt"])
    torch.save(content, tmp_path / "damaged.ckpt")
    load_potential(tmp_path / "damaged.ckpt")
    with pytest.raises(InputError, match=says):
        load_potential(tmp_path / "damaged.ckpt", level="emt")


@pytest.mark.parametrize("name", ["../emt", "", "a\nb", "reference", "-o"])
def test_a_level_of_a_checkpoint_has_a_name_that_may_be_part_of_a_file_s(run, tmp_path, name):
    content = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    content["levels"][name] = content["levels"].pop("emt")
    torch.save(content, tmp_path / "damaged.ckpt")
    with pytest.raises(InputError, match="is no name for a level"):
        load_potential(tmp_path / "damaged.ckpt", level=name)


def test_names_follow_from_where_labels_come_from():
    named = {
        "gfn2?accuracy=0.1": "gfn2",
        "run:runs/mace-1": "mace-1",
        "chgnet.model.dynamics:CHGNetCalculator": "CHGNetCalculator",
    }
    assert {name: LevelOptions(calculator=name).called for name in named} == named
    files = {
        "data/old.v2.extxyz?energy=kcal/mol": "old",
        "a.xyz@:10,b.xyz": "a",
        "builtin:cual-emt/train": "cual-emt",
    }
    assert {name: LevelOptions(data=name).called for name in files} == files


def test_the_whole_potential_is_a_level_of_a_cut_down_one(tmp_path):
    """A run that fine-tunes two of three species keeps its level for all three."""
    first = tmp_path / "first"
    train_run(prepared(tmp_path, **{"trainer.max_steps": 1}), first)
    water = [
        replace(f, numbers=np.where(f.numbers == 6, 8, f.numbers))
        for f in load_frames("builtin:ethanol-gfn2@0:8")
    ]
    write_store(tmp_path / "two.lmdb", water)
    options = {
        "finetune.run": str(first),
        "data.train": str(tmp_path / "two.lmdb"),
        "data.valid": str(tmp_path / "two.lmdb") + "@0:2",
        "data.check_references": False,
        "weak.levels": [{"data": str(tmp_path / "two.lmdb"), "name": "same", "quantities": ["forces"]}],
        "trainer.max_steps": 2,
    }
    values = [(k, v) for k, v in settings(tmp_path, **options) if not k.startswith("model.")]
    train_run(prepare_run(load_config(None, values)), tmp_path / "run")
    assert isinstance(load_potential(tmp_path / "run", level="same"), Potential)
    assert load_potential(tmp_path / "run", level="same").species == ("H", "C", "O")
