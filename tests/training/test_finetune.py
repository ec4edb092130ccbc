"""Fine-tuning starts where the run ended, keeps what is frozen, and changes nothing that it was not asked to."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pimlip_zoo import experiment
from pimlip_zoo.config import load_config, parse_settings
from pimlip_zoo.datasets.neighbours import frame_to_sample
from pimlip_zoo.errors import InputError
from pimlip_zoo.experiment.run import training_module
from pimlip_zoo.graph import collate
from pimlip_zoo.models.base import AtomicEnergyModel, ModelConfig
from pimlip_zoo.models.mace import MACE
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.nn.zbl import ZBL
from pimlip_zoo.registry import MODELS, get_model, register_model
from pimlip_zoo.testing import as_graph, structure
from pimlip_zoo.training.checkpoint import KEY, describe, load_potential
from pimlip_zoo.training.finetune import (
    freeze,
    parameter_groups,
    refit_references,
    set_references,
    start_from,
    tunable_names,
)

SPECIES = ("H", "C", "O")
SMALL = {
    "nequip": {"num_layers": 2, "channels": 4, "radial_hidden": (4,)},
    "allegro": {
        "scalar_channels": 8,
        "tensor_channels": 4,
        "embed_hidden": (8,),
        "latent_hidden": (8,),
        "readout_hidden": (8,),
    },
    "mace": {"channels": 4, "radial_hidden": (4,), "correlation": 2, "l_max": 2},
}
DATA = ["data.train=builtin:ethanol-gfn2/train@:20", "data.valid=builtin:ethanol-gfn2/valid@:4"]
SHORT = ["trainer.max_steps=6", "trainer.valid_every=3", "schedule.warmup_steps=2"]


def a_potential(name="nequip", dtype=torch.float64, *, zbl=False, **options):
    torch.manual_seed(3)
    info = get_model(name)
    config = info.configure(**{"avg_num_neighbors": 5.0, "cutoff": 4.0, **SMALL[name], **options})
    model = info.model(config, SPECIES).to(dtype)
    references = torch.tensor([-13.5, -1036.0, -2042.0])
    return Potential(
        model, energy_references=references, scale=0.5, repulsion=ZBL(SPECIES) if zbl else None
    ).eval()


def write_run(potential, folder):
    (folder / "checkpoints").mkdir(parents=True)
    weights = {f"potential.{name}": value for name, value in potential.state_dict().items()}
    content = {KEY: describe(potential), "state_dict": weights, "global_step": 0}
    torch.save(content, folder / "checkpoints" / "best.ckpt")
    return str(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that knows H, C, O."""
    return write_run(a_potential(dtype=torch.float32), tmp_path_factory.mktemp("runs") / "base")


def prepared(run, *more, checkpoint=None):
    config = load_config(None, parse_settings([*DATA, *SHORT, f"finetune.run={run}", *more]))
    return experiment.prepare(config, checkpoint=checkpoint)


def labelled_samples(potential, shifts, names=("molecule", "dimer", "atom"), species=SPECIES):
    """Structures whose energies are those of the potential, shifted by so much per atom of each species."""
    samples = []
    for seed, name in enumerate(names):
        for order in (species, species[::-1], (*species[1:], species[0])):
            sample = frame_to_sample(structure(name, order, seed=seed), potential.species, potential.cutoff)
            with torch.no_grad():
                energy = potential(sample.graph, forces=False, virial=False).energy
            energy = energy + sum(shifts[potential.species[s]] for s in sample.graph.species.tolist())
            samples.append(sample._replace(labels=sample.labels._replace(energy=energy)))
    return samples


# ---- what comes from the run


def test_the_start_is_the_potential_of_the_run(run):
    expected = load_potential(run)
    start = prepared(run, "finetune.refit_references=false", "data.check_references=false").potential
    for name, value in expected.state_dict().items():
        assert torch.equal(value, start.state_dict()[name])
    assert start.species == expected.species
    assert start.model.config == expected.model.config
    assert all(parameter.requires_grad for parameter in start.model.parameters())
    assert not start.scale.requires_grad


def test_the_complete_configuration_carries_the_options_of_the_run(run):
    config = load_config(None, parse_settings([*DATA, f"finetune.run={run}"]))
    assert config.model.name == "nequip"
    assert config.model.preset is None
    assert config.model.configure() == load_potential(run).model.config
    assert config.potential.scale == "run"
    again = load_config(None, [("finetune.run", run), *config.model_dump(mode="json").items()])
    assert again == config


def test_the_precision_is_the_runs_unless_another_is_asked_for(run):
    assert prepared(run).potential.model.dtype == torch.float32
    assert prepared(run, "trainer.dtype=float64").potential.model.dtype == torch.float64


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("model.name=mace", "model.name"),
        ("model.channels=8", "model.channels"),
        ("model.force_head=direct", "model.force_head"),
        ("model.preset=small", "model.channels"),
        ("potential.zbl=true", "potential.zbl"),
        ("potential.scale=2.0", "potential.scale"),
    ],
)
def test_what_contradicts_the_run_is_refused_by_name(run, setting, key):
    with pytest.raises(InputError, match="contradicts the run") as caught:
        load_config(None, parse_settings([*DATA, f"finetune.run={run}", setting]))
    assert caught.value.key == key


def test_what_agrees_with_the_run_may_be_given(run):
    same = ["model.name=nequip", "model.channels=4", "model.radial_hidden=[4]", "model.cutoff=4"]
    load_config(None, parse_settings([*DATA, f"finetune.run={run}", *same]))


def test_a_misspelled_option_is_still_named(run):
    with pytest.raises(InputError, match="did you mean channels"):
        load_config(None, parse_settings([*DATA, f"finetune.run={run}", "model.chanels=4"]))


def test_fine_tuning_without_data_or_without_a_run_is_refused(run, tmp_path):
    with pytest.raises(InputError, match=r"data\.train.*needs data"):
        load_config(None, [("finetune.run", run)])
    with pytest.raises(InputError, match="no such run"):
        load_config(None, parse_settings([*DATA, f"finetune.run={tmp_path / 'nothing'}"]))
    for setting in (
        "finetune.freeze=[layers]",
        "finetune.extend_species=true",
        "finetune.refit_references=false",
        "potential.scale=run",
    ):
        with pytest.raises(InputError, match="--from RUN"):
            experiment.prepare(load_config(None, parse_settings([*DATA, setting])))


# ---- energy references


@settings(max_examples=10, deadline=None)
@given(shifts=st.fixed_dictionaries({symbol: st.floats(-3000, 3000) for symbol in SPECIES}))
def test_refitting_finds_the_zero_of_energy_of_the_new_data(shifts):
    potential = a_potential()
    samples = labelled_samples(potential, shifts)
    before = potential.energy_references.detach().clone()
    references = refit_references(potential, samples, batch_size=4)
    expected = before + torch.tensor([shifts[symbol] for symbol in SPECIES], dtype=torch.float64)
    torch.testing.assert_close(potential.energy_references.detach(), expected, rtol=0, atol=1e-8)
    assert references.rank == 3
    batch = collate(samples)
    with torch.no_grad():
        energy = potential(batch.graph).energy
    torch.testing.assert_close(energy, batch.labels.energy, rtol=1e-12, atol=1e-8)


def test_species_that_the_new_data_lack_keep_their_references():
    potential = a_potential()
    samples = labelled_samples(potential, {"H": 1.0, "C": 2.0}, species=("H", "C"))
    refit_references(potential, samples)
    expected = torch.tensor([-12.5, -1034.0, -2042.0], dtype=torch.float64)
    torch.testing.assert_close(potential.energy_references.detach(), expected, rtol=0, atol=1e-8)


def test_one_composition_moves_the_references_as_little_as_it_can(caplog):
    potential = a_potential()
    samples = labelled_samples(potential, dict.fromkeys(SPECIES, 0.3), names=("molecule",))[:1]
    counts = torch.bincount(samples[0].graph.species, minlength=3).to(torch.float64)
    before = potential.energy_references.detach().clone()
    references = refit_references(potential, samples)
    expected = before + counts * (0.3 * counts.sum() / counts.square().sum())
    torch.testing.assert_close(potential.energy_references.detach(), expected, rtol=0, atol=1e-9)
    assert references.rank == 1
    assert "determine 1 of 3" in caplog.text


def test_without_labelled_energies_the_references_stay():
    potential = a_potential()
    before = potential.energy_references.detach().clone()
    sample = frame_to_sample(structure("molecule", SPECIES), SPECIES, potential.cutoff)
    assert refit_references(potential, [sample]).source == "the run"
    assert torch.equal(potential.energy_references.detach(), before)


def test_references_are_given_refitted_or_kept(run):
    kept = prepared(run, "finetune.refit_references=false", "data.check_references=false").references
    np.testing.assert_array_equal(kept.energies, [-13.5, -1036.0, -2042.0])
    table = prepared(run, "data.energy_references={H: -1.0, C: -2.0, O: -3.0}", "data.check_references=false")
    np.testing.assert_array_equal(table.references.energies, [-1.0, -2.0, -3.0])
    assert prepared(run).references.source == "the run, re-fitted"


# ---- species


def test_a_subset_of_the_species_keeps_the_list(tmp_path):
    run = write_run(a_potential(zbl=True), tmp_path / "run")
    start = start_from(run, ("O", "H"))
    assert start.species == SPECIES
    assert isinstance(start.repulsion, ZBL)


def test_new_species_are_refused_by_name(run):
    with pytest.raises(InputError, match=r"the data have N, Cl, .* knows H, C, O only") as caught:
        start_from(run, ("H", "N", "Cl"))
    assert caught.value.key == "finetune.extend_species"


def test_extending_the_species_without_a_new_one_is_refused(run):
    with pytest.raises(InputError, match="no species that the run does not know") as caught:
        prepared(run, "finetune.extend_species=true")
    assert caught.value.key == "finetune.extend_species"


def test_what_is_on_is_said(run, caplog):
    with caplog.at_level("INFO", logger="pimlip_zoo"):
        prepared(run, "finetune.freeze=[species_embedding]")
    (line,) = [record.getMessage() for record in caplog.records if "fine-tuning" in record.getMessage()]
    assert "energy references: the run, re-fitted; 3 species known, 3 in the data" in line
    assert " weights frozen" in line


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ["nequip", "allegro", "mace"])
def test_an_extended_potential_repeats_the_energies_of_the_known_species(tmp_path, name, dtype):
    old = a_potential(name, dtype, zbl=True)
    new = start_from(write_run(old, tmp_path / "run"), ("H", "N", "Cl"), extend=True).eval()
    assert new.species == ("H", "C", "O", "N", "Cl")
    assert new.energy_references.isnan().tolist() == [False, False, False, True, True]
    tolerance = 1e-10 if dtype is torch.float64 else 1e-4
    for kind in ("molecule", "triclinic", "atom"):
        frame = structure(kind, SPECIES)
        expected = old(as_graph(frame, SPECIES, old.cutoff))
        found = new(as_graph(frame, new.species, new.cutoff))
        torch.testing.assert_close(found.energy, expected.energy, rtol=0, atol=tolerance)
        torch.testing.assert_close(found.forces, expected.forces, rtol=0, atol=tolerance)


def test_new_species_are_the_mean_of_the_known_ones(tmp_path):
    old = a_potential()
    new = start_from(write_run(old, tmp_path / "run"), ("N",), extend=True)
    rows = new.model.species_embedding.detach()
    torch.testing.assert_close(rows[3], old.model.species_embedding.detach().mean(0), rtol=0, atol=1e-12)
    set_references(new, {"N": -1500.0}, "given")
    forces = new.eval()(as_graph(structure("molecule", ("N", "H")), new.species, new.cutoff)).forces
    assert forces.isfinite().all()
    assert float(forces.detach().abs().max()) > 0


def test_references_of_new_species_are_fitted_or_asked_for(tmp_path):
    run = write_run(a_potential(), tmp_path / "run")
    new = start_from(run, ("N",), extend=True)
    expected = set_references(new, {"N": 0.0}, "given").energies
    expected[:] += [0.5, 0.5, 0.5, -1500.0]
    samples = labelled_samples(
        new.eval(), {"H": 0.5, "C": 0.5, "O": 0.5, "N": -1500.0}, species=("H", "C", "O", "N")
    )
    again = start_from(run, ("N",), extend=True)
    fitted = refit_references(again, samples).energies
    np.testing.assert_allclose(fitted, expected, rtol=0, atol=1e-7)


def test_a_factor_that_depends_on_the_number_of_species_is_found_out(tmp_path, monkeypatch):
    run = write_run(a_potential("mace"), tmp_path / "run")
    monkeypatch.setattr(MACE, "species_factor", lambda self, name: 1.0)
    with pytest.raises(InputError, match="depends on the number of species"):
        start_from(run, ("N",), extend=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairTableConfig(ModelConfig):
    pass


def test_an_architecture_without_rows_by_species_is_refused(tmp_path):
    @register_model("pair-table", config=PairTableConfig)
    class PairTable(AtomicEnergyModel):
        """One number for every pair of species, in one row."""

        def __init__(self, config, species):
            super().__init__(config, species)
            self.table = nn.Parameter(torch.ones(len(species) ** 2))

    try:
        model = PairTable(PairTableConfig(), SPECIES)
        run = write_run(Potential(model), tmp_path / "run")
        with pytest.raises(InputError, match=r"model\.table is \(9,\) for 3 species and \(16,\) for 4"):
            start_from(run, ("N",), extend=True)
    finally:
        del MODELS._items["pair-table"]


# ---- what is trained, and how fast


def test_frozen_parameters_do_not_move_and_the_others_do(run, tmp_path):
    frozen = ("species_embedding", "layers.0")
    begun = prepared(run, f"finetune.freeze=[{', '.join(frozen)}]", "trainer.ema_decay=0.5")
    before = {name: p.detach().clone() for name, p in begun.potential.model.named_parameters()}
    experiment.train(begun, tmp_path / "tuned")
    after = dict(load_potential(tmp_path / "tuned").model.named_parameters())
    for name, value in before.items():
        assert torch.equal(value, after[name]) == name.startswith(frozen), name


def test_patterns_match_names_and_whole_modules():
    potential = a_potential()
    count = freeze(potential, ["*.radial.*", "readout"])
    left = {name for name, p in tunable_names(potential).items() if p.requires_grad}
    assert not any("radial" in name or name.startswith("readout") for name in left)
    assert "species_embedding" in left
    assert count == sum(p.numel() for n, p in tunable_names(potential).items() if n not in left)


def test_a_pattern_that_matches_nothing_names_the_nearest_part():
    potential = a_potential()
    for call in (freeze, lambda p, names: parameter_groups(p, 0.1, dict.fromkeys(names, 0.5))):
        with pytest.raises(InputError, match=r"'layer\.0\.\*' .*layers\.0") as caught:
            call(potential, ["layer.0.*"])
        assert str(caught.value.key).startswith("finetune.")


def test_freezing_everything_is_refused():
    with pytest.raises(InputError, match="nothing is left to train"):
        freeze(a_potential(), ["*"])


def test_learning_rates_by_part(run):
    settings = [
        'finetune.learning_rates={"layers.*": 0.1, "layers.1": 0.5}',
        "optimizer.lr=0.02",
        "finetune.freeze=[species_embedding]",
    ]
    begun = prepared(run, *settings)
    names = {id(p): name for name, p in begun.potential.named_parameters()}
    groups = parameter_groups(begun.potential, 0.02, begun.config.finetune.learning_rates)
    rates = {names[id(p)]: group["lr"] for group in groups for p in group["params"]}
    assert groups[0]["lr"] == 0.02
    assert rates.pop("model.readout.weights.0") == 0.02
    for name, rate in rates.items():
        assert rate == pytest.approx(0.002 if name.startswith("model.layers.0.") else 0.01)
    assert "model.species_embedding" not in rates
    optimizer = training_module(begun).configure_optimizers()["optimizer"]
    warm_up = 1 / 3  # of two steps, the first
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([g["lr"] * warm_up for g in groups])


def test_without_patterns_there_is_one_group_of_all_trainable_parameters():
    potential = a_potential()
    (group,) = parameter_groups(potential, 0.1, {})
    assert [id(p) for p in group["params"]] == [id(p) for p in potential.parameters() if p.requires_grad]


# ---- going on


def test_a_resumed_fine_tuning_ends_as_an_uninterrupted_one_also_when_the_run_is_gone(tmp_path):
    base = tmp_path / "base"
    write_run(a_potential(dtype=torch.float32), base)
    options = [
        "finetune.freeze=[layers.0]",
        'finetune.learning_rates={"readout": 0.1}',
        "schedule.name=constant",
    ]
    experiment.train(prepared(base, *options), tmp_path / "whole")
    experiment.train(prepared(base, *options, "trainer.max_steps=3"), tmp_path / "part")
    (base / "checkpoints" / "best.ckpt").unlink()
    config = load_config(tmp_path / "part" / "config.yaml", [("trainer.max_steps", 6)], complete=True)
    again = experiment.prepare(config, checkpoint=tmp_path / "part" / "checkpoints" / "last.ckpt")
    experiment.train(again, tmp_path / "part", resume=True)
    expected = load_potential(tmp_path / "whole", which="last").state_dict()
    found = load_potential(tmp_path / "part", which="last").state_dict()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
