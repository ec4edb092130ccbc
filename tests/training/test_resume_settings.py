"""What a resumed run may change takes effect; what it may not is refused before anything is written."""

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from pimlip_zoo import api
from pimlip_zoo.cli.export import ExportFormat, export_potential
from pimlip_zoo.cli.import_ import write_run
from pimlip_zoo.cli.train import app as train_app
from pimlip_zoo.config import load_config, parse_settings
from pimlip_zoo.datasets.builtin import load_builtin
from pimlip_zoo.datasets.frame import Frame, frame_to_atoms
from pimlip_zoo.datasets.lmdb import write_store
from pimlip_zoo.datasets.neighbours import frame_to_sample
from pimlip_zoo.errors import InputError
from pimlip_zoo.experiment import check_free, check_settings, stages
from pimlip_zoo.experiment.record import check_data, data_record
from pimlip_zoo.experiment.stages import prepare_run, train_run
from pimlip_zoo.locks import claimed
from pimlip_zoo.training.checkpoint import KEY, load_potential
from pimlip_zoo.training.replay import Replay
from pimlip_zoo.training.schedule import RunClock, learning_rate_factor

SMALL = [
    "model.channels=4",
    "model.radial_hidden=[4]",
    "trainer.valid_every=2",
    "trainer.device=cpu",
    "data.batch_size=4",
]


def write(path, frames):
    import ase.io

    ase.io.write(path, [frame_to_atoms(frame) for frame in frames])
    return path


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run of four steps on twelve structures."""
    folder = tmp_path_factory.mktemp("begun")
    write(folder / "data.extxyz", load_builtin("ethanol-gfn2")[:12])
    settings = [*SMALL, f"data.train={folder / 'data.extxyz'}", "trainer.max_steps=4"]
    train_run(prepare_run(load_config(None, parse_settings(settings))), folder / "run")
    return folder


@pytest.fixture
def run(begun, tmp_path):
    return shutil.copytree(begun / "run", tmp_path / "run")


def resume(run, *settings):
    """As the command line does it."""
    config = load_config(None, parse_settings(settings), onto=run / "config.yaml")
    check_settings(run, config)
    experiment = prepare_run(config, checkpoint=run / "checkpoints" / "last.ckpt", resumes=run)
    return train_run(experiment, run, resume=True)


def content(run):
    return {path.relative_to(run): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


def refused(run, *settings, says):
    before = content(run)
    with pytest.raises(InputError) as caught:
        resume(run, *settings)
    for words in says:
        assert words in str(caught.value)
    assert content(run) == before


def current_weights(run):
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return saved["current_model_state"], saved["optimizer_states"][0]["param_groups"]


# ---- options


def test_a_learning_rate_holds_from_the_first_step_on(run):
    before, _ = current_weights(run)
    resume(run, "optimizer.lr=1e-30", "trainer.max_steps=8")
    after, groups = current_weights(run)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert groups[0]["initial_lr"] == 1e-30
    assert yaml.safe_load((run / "config.yaml").read_text())["optimizer"]["lr"] == 1e-30


def test_the_schedule_is_that_of_the_new_length(run):
    resume(run, "optimizer.lr=0.02", "trainer.max_steps=8", "schedule.warmup_steps=0")
    factor = learning_rate_factor("linear", warmup_steps=0, clock=RunClock(8), final=0.0)
    with (run / "metrics.csv").open() as file:
        rates = {int(row["step"]): float(row["learning_rate"]) for row in csv.DictReader(file)}
    assert rates[6] == pytest.approx(0.02 * factor(6), rel=1e-12)
    assert rates[8] == pytest.approx(0.02 * factor(8), rel=1e-12)


def test_a_longer_patience_holds(begun, tmp_path):
    settings = [*SMALL, f"data.train={begun / 'data.extxyz'}", "optimizer.lr=1e-30", "trainer.max_steps=40"]
    settings += ["trainer.ema_decay=0", "trainer.patience=1"]  # nothing ever improves
    folder = tmp_path / "run"
    assert train_run(prepare_run(load_config(None, parse_settings(settings))), folder).steps == 4
    assert resume(folder, "trainer.patience=3").steps == 8  # the count of validations goes on


@pytest.mark.parametrize(
    "setting",
    [
        "loss.forces.weight=3",
        "data.batch_size=3",
        "trainer.valid_every=3",
        "trainer.gradient_clip=1",
        "trainer.threads=1",
        "data.num_workers=1",
        "trainer.max_time=1h",
    ],
)
def test_what_does_not_shape_the_run_may_change(run, setting):
    assert resume(run, setting, "trainer.max_steps=6").steps == 6
    key, value = setting.split("=")
    kept = yaml.safe_load((run / "config.yaml").read_text())
    for part in key.split("."):
        kept = kept[part]
    assert str(kept).removesuffix(".0") == value


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("model.channels=8", ["model.channels", "has 4", "given is 8"]),
        ("model.preset=medium", ["model.preset", "has compact", "given is medium"]),
        ("model.name=mace", ["model.name", "nequip", "mace"]),
        ("seed=1", ["seed", "has 0", "given is 1"]),
        ("optimizer.name=adamw", ["optimizer.name", "muon", "adamw"]),
        ("recipe.name=nequip", ["recipe.name", "default", "nequip"]),
        ("optimizer.weight_decay=0.1", ["optimizer.weight_decay", "0.1"]),
        ("trainer.dtype=float64", ["trainer.dtype", "float32", "float64"]),
        ("trainer.ema_decay=0", ["trainer.ema_decay", "0.99"]),
        ("trainer.accumulate=2", ["trainer.accumulate", "has 1", "given is 2"]),
        ("data.labels=[energy]", ["data.labels", "auto", "energy"]),
        ("data.valid_fraction=0.3", ["data.valid_fraction", "0.1", "0.3"]),
        ("data.energy_references={H: -1.0}", ["data.energy_references", "auto", "-1.0"]),
        ("potential.zbl=true", ["potential.zbl", "False", "True"]),
        ("weak.preset=piwsl", ["weak.preset", "nothing", "piwsl"]),
        ("trainer.max_steps=3", ["trainer.max_steps", "done 4", "are 3"]),
    ],
)
def test_what_shapes_the_run_is_refused_by_key_and_changes_no_file(run, setting, says):
    refused(run, setting, says=[str(run), *says])


def test_a_configuration_edited_by_hand_is_compared_with_the_checkpoint(run):
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("channels: 4", "channels: 16"))
    refused(run, "trainer.max_steps=6", says=["model.channels", "has 4", "given is 16"])
    assert resume(run, "model.channels=4", "trainer.max_steps=6").steps == 6


def test_a_refused_resumption_leaves_a_run_that_goes_on(run):
    refused(run, "model.channels=16", "trainer.max_steps=6", says=["model.channels"])
    assert resume(run, "trainer.max_steps=6").steps == 6


def test_a_configuration_file_given_again_changes_nothing_by_its_defaults(run, tmp_path):
    (tmp_path / "run.yaml").write_text("model: {channels: 4}\ntrainer: {max_steps: 6}\n")
    config = load_config(tmp_path / "run.yaml", onto=run / "config.yaml")
    kept = load_config(run / "config.yaml", complete=True)
    assert config.trainer.max_steps == 6
    config.trainer.max_steps = 4
    assert config == kept


# ---- data


def changed(frame, **what):
    fields = {name: getattr(frame, name) for name in Frame.__slots__}
    return Frame(**{**fields, **what})


CHANGES = {
    "appended": lambda frames: [*frames, *load_builtin("ethanol-gfn2")[12:16]],
    "fewer": lambda frames: frames[:-1],
    "another order": lambda frames: frames[::-1],
    "an energy": lambda frames: [changed(frames[0], energy=frames[0].energy + 1e-3), *frames[1:]],
    "a force": lambda frames: [changed(frames[0], forces=-frames[0].forces), *frames[1:]],
    "a position": lambda frames: [changed(frames[0], positions=frames[0].positions + 1e-6), *frames[1:]],
    "an element": lambda frames: [
        changed(frames[0], numbers=np.where(frames[0].numbers == 8, 16, frames[0].numbers)),
        *frames[1:],
    ],
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_data_that_changed_are_refused(begun, run, tmp_path, change):
    frames = load_builtin("ethanol-gfn2")[:12]
    other = write(tmp_path / "other.extxyz", CHANGES[change](list(frames)))
    refused(
        run,
        f"data.train={other}",
        "trainer.max_steps=6",
        says=["data.", "not those of the run", str(begun / "data.extxyz"), str(other)],
    )


def test_the_same_data_in_another_place_are_taken(begun, run, tmp_path):
    moved = shutil.copy(begun / "data.extxyz", tmp_path / "moved.extxyz")
    assert resume(run, f"data.train={moved}", "trainer.max_steps=6").steps == 6
    assert json.loads((run / "data.json").read_text())["training"]["data"] == str(moved)


def test_unlabelled_structures_are_compared_too(tmp_path):
    frames = load_builtin("ethanol-gfn2")[:10]
    path = write(tmp_path / "unlabelled.extxyz", frames[:4])
    settings = [("weak.preset", "piwsl"), ("weak.unlabelled", str(path))]
    first = data_record(load_config(None, settings), (frames, frames))
    write(path, frames[:5])
    second = data_record(load_config(None, settings), (frames, frames))
    assert first["training"] == second["training"]
    assert first["unlabelled"]["sha256"] != second["unlabelled"]["sha256"]


def test_structures_to_replay_and_atoms_apart_are_compared_too(begun, run, tmp_path, caplog):
    frames = load_builtin("ethanol-gfn2")[20:24]
    atoms = [Frame(np.array([z]), np.zeros((1, 3)), energy=-1.0 * z) for z in (1, 6, 8)]
    replay, apart = write(tmp_path / "replay.extxyz", frames), write(tmp_path / "atoms.extxyz", atoms)
    settings = [*SMALL, f"data.train={begun / 'data.extxyz'}", f"data.energy_references={apart}"]
    config = load_config(
        None, parse_settings([*settings, f"finetune.run={begun / 'run'}", f"finetune.replay={replay}"])
    )

    def record():
        return data_record(config, (frames[:1], frames[1:2]))

    kept = record()
    (run / "data.json").write_text(json.dumps(kept))
    (run / "checkpoints" / "last.ckpt").unlink()
    write(replay, [dataclasses.replace(frame, energy=0.0, forces=None) for frame in frames])
    check_data(run, record())  # their labels are not looked at
    for others, key in ((frames[::-1], "finetune.replay"), (frames[:3], "finetune.replay")):
        write(replay, others)
        with pytest.raises(InputError, match=f"{key}: the replay structures are not those of the run"):
            check_data(run, record())
    write(replay, frames)
    write(apart, [*atoms[:2], dataclasses.replace(atoms[2], energy=-7.9)])
    with pytest.raises(InputError, match="energy_references: the references structures are not those"):
        check_data(run, record())
    (run / "data.json").write_text(json.dumps({name: kept[name] for name in ("training", "validation")}))
    caplog.clear()
    check_data(run, record())  # of a version that did not note them
    for part in ("replay", "references"):
        assert (
            caplog.text.count(f"whether the {part} structures of {run} are still the same is not known") == 1
        )
    assert "training" not in caplog.text


def test_what_was_kept_for_other_structures_is_not_replayed(run):
    potential = load_potential(run)
    samples = [
        frame_to_sample(frame, potential.species, potential.cutoff)
        for frame in load_builtin("ethanol-gfn2")[20:24]
    ]
    kept = Replay(potential, samples).state_dict()
    Replay(potential, samples).load_state_dict(kept)
    with pytest.raises(InputError, match=r"finetune\.replay: .* kept energy of 4, these have 3"):
        Replay(potential, samples[:3]).load_state_dict(kept)


def test_weights_of_labels_that_changed_are_refused(begun, run, tmp_path):
    frames = load_builtin("ethanol-gfn2")[:12]
    heavy = [dataclasses.replace(frame, label_weights=(1.0, 100.0, 1.0)) for frame in frames]
    write(tmp_path / "heavy.extxyz", heavy)
    refused(
        run, f"data.train={tmp_path / 'heavy.extxyz'}", "trainer.max_steps=8", says=["not those of the run"]
    )


@pytest.mark.parametrize("change", ["appended", "an energy", "a force", "a position", "an element"])
def test_a_store_that_changed_has_another_hash(tmp_path, change):
    from pimlip_zoo.datasets.store_frames import open_frames

    frames = list(load_builtin("ethanol-gfn2")[:12])
    records = []
    for number, part in enumerate((frames, frames, CHANGES[change](frames))):
        path = write_store(tmp_path / f"{number}.lmdb", part)
        config = load_config(None, [("data.train", str(path))])
        stored = open_frames(str(path))
        records.append(data_record(config, (stored, stored.subset([0, 1])))["training"]["sha256"])
    assert records[0] == records[1] != records[2]


def edited_checkpoint(run, change):
    file = run / "checkpoints" / "last.ckpt"
    saved = torch.load(file, weights_only=True)
    change(saved[KEY]["summary"])
    torch.save(saved, file)


def test_a_checkpoint_of_a_run_on_other_structures_is_refused(run, tmp_path):
    """It was copied from a run that differs in nothing but its data: only its own hashes tell."""
    other = write(tmp_path / "other.extxyz", CHANGES["an energy"](list(load_builtin("ethanol-gfn2")[:12])))
    settings = [*SMALL, f"data.train={other}", "trainer.max_steps=4"]
    train_run(prepare_run(load_config(None, parse_settings(settings))), tmp_path / "second")
    shutil.copy(tmp_path / "second" / "checkpoints" / "last.ckpt", run / "checkpoints" / "last.ckpt")
    kept = yaml.safe_load((run / "config.yaml").read_text())["data"]["train"]
    edited_checkpoint(run, lambda summary: summary["config"]["data"].update(train=kept))
    refused(run, "trainer.max_steps=6", says=["last.ckpt", "data.train", "with other training structures"])
    (run / "data.json").unlink()
    refused(run, "trainer.max_steps=6", says=["last.ckpt", "with other training structures"])


def test_a_checkpoint_without_hashes_goes_on(run):
    edited_checkpoint(run, lambda summary: summary.pop("structures"))
    assert resume(run, "trainer.max_steps=6").steps == 6


def test_a_run_without_hashes_goes_on_and_says_so(run, caplog):
    (run / "data.json").unlink()
    edited_checkpoint(run, lambda summary: summary.pop("structures"))
    with caplog.at_level("WARNING", logger="pimlip_zoo"):
        assert resume(run, "trainer.max_steps=6").steps == 6
    assert "not known" in caplog.text
    assert (run / "data.json").exists()


def test_hashes_that_cannot_be_read_are_named(run):
    (run / "data.json").write_text('{"training": 3}')
    refused(run, "trainer.max_steps=6", says=["data.json", "damaged"])


# ---- weights that are there


def steps_of_best(folder):
    return torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["global_step"]


STILL = ("optimizer.lr=1e-30", "trainer.max_steps=8")


@pytest.fixture(scope="module")
def best_at_four(tmp_path_factory):
    """A run whose best weights are those of step 4, and stay so when it goes on without a change of the weights."""
    folder = tmp_path_factory.mktemp("best")
    write(folder / "data.extxyz", load_builtin("ethanol-gfn2")[:12])
    settings = [
        *SMALL,
        "trainer.ema_decay=0",
        "trainer.keep=best",
        f"data.train={folder / 'data.extxyz'}",
        "trainer.max_steps=4",
    ]
    train_run(prepare_run(load_config(None, parse_settings(settings))), folder / "run")
    assert steps_of_best(folder / "run") == 4
    return folder / "run"


@pytest.mark.parametrize("way", ["copied", "moved", "linked"])
def test_a_run_that_is_somewhere_else_now_keeps_its_best_weights(way, best_at_four, tmp_path):
    run = shutil.copytree(best_at_four, tmp_path / "first" / "run")
    if way == "moved":
        run = run.rename(tmp_path / "run")
    elif way == "linked":
        (tmp_path / "link").symlink_to(tmp_path / "first")
        run = tmp_path / "link" / "run"
    resume(run, *STILL)
    assert steps_of_best(run) == 4


def test_a_run_without_its_best_weights_says_so_and_keeps_the_best_that_follow(
    best_at_four, tmp_path, caplog
):
    run = shutil.copytree(best_at_four, tmp_path / "run")
    (run / "checkpoints" / "best.ckpt").unlink()
    with caplog.at_level("WARNING", logger="pimlip_zoo"):
        resume(run, *STILL)
    assert "best.ckpt is not there any more" in caplog.text
    assert steps_of_best(run) == 6


@pytest.fixture(params=["imported", "without last.ckpt", "a stage of it"])
def weights(request, begun, tmp_path):
    """A folder with weights that nobody may replace, and nothing to go on from."""
    folder = tmp_path / "kept"
    if request.param == "imported":
        write_run(load_potential(begun / "run"), folder, {"imported": "somewhere"})
    else:
        shutil.copytree(begun / "run", folder)
        (folder / "checkpoints" / "last.ckpt").unlink()
    if request.param == "a stage of it":
        (folder / "pretrain").mkdir()
        (folder / "checkpoints").rename(folder / "pretrain" / "checkpoints")
    return folder


def test_a_new_run_does_not_replace_weights_that_are_there(weights, begun):
    before = content(weights)
    settings = {"data.train": str(begun / "data.extxyz"), "trainer.max_steps": 2, "model.channels": 4}
    with pytest.raises(InputError, match=r"holds a (run|model) already: .*best\.ckpt.*give another"):
        api.train(settings, out=weights)
    options = [f"--data={settings['data.train']}", "--max-steps=2", "--set=model.channels=4"]
    result = CliRunner().invoke(train_app, [f"--out={weights}", *options])
    assert isinstance(result.exception, InputError)
    assert content(weights) == before


def test_a_run_that_would_begin_again_does_not_replace_its_weights(begun, run):
    (run / "checkpoints" / "last.ckpt").unlink()
    before = content(run)
    for again in (
        lambda: api.train({}, out=run, resume=True),
        lambda: CliRunner().invoke(train_app, [f"--out={run}", "--resume"], catch_exceptions=False),
    ):
        with pytest.raises(InputError, match=r"nothing to go on from.*best\.ckpt \(it is of step 4\)"):
            again()
    assert content(run) == before
    imported = run.with_name("imported")
    write_run(load_potential(begun / "run"), imported, {"imported": "somewhere"})
    with pytest.raises(InputError, match=r"no training wrote it.*--from .*imported"):
        api.train({"data.train": str(begun / "data.extxyz")}, out=imported, resume=True)


def test_a_run_that_was_killed_between_its_first_two_checkpoints_begins_again(run):
    best = run / "checkpoints" / "best.ckpt"
    (run / "checkpoints" / "last.ckpt").unlink()
    saved = torch.load(best, weights_only=True)
    torch.save({**saved, "global_step": 2}, best)
    check_settings(run, load_config(run / "config.yaml", complete=True))
    refused(run, "optimizer.lr=0.3", says=["nothing to go on from", "optimizer.lr", "replace its best.ckpt"])


def test_an_export_does_not_replace_a_checkpoint_of_a_run(run, tmp_path):
    potential = load_potential(run)
    (tmp_path / "link.ckpt").symlink_to(run / "checkpoints" / "last.ckpt")
    before = content(run)
    for target in (
        run / "checkpoints" / "best.ckpt",
        run / "checkpoints" / "last.ckpt",
        tmp_path / "link.ckpt",
    ):
        for kind in (ExportFormat.checkpoint, ExportFormat.torchscript):
            with pytest.raises(InputError, match=r"is a checkpoint of a run.*elsewhere"):
                export_potential(potential, target, format=kind, source=run)
    assert content(run) == before
    assert export_potential(potential, tmp_path / "new.ckpt", format=ExportFormat.checkpoint).path.exists()


def test_an_imported_model_is_not_written_beside_other_weights_or_while_another_process_has_the_folder(
    run, tmp_path
):
    potential = load_potential(run)
    (run / "config.yaml").unlink()
    (run / "checkpoints" / "best.ckpt").unlink()
    before = content(run)
    with pytest.raises(InputError, match=r"holds a run already: checkpoints/last\.ckpt"):
        write_run(potential, run, {"imported": "somewhere"})
    assert content(run) == before
    with claimed(tmp_path / "begins") as begins, pytest.raises(InputError, match="is writing to it"):
        write_run(potential, begins, {"imported": "somewhere"})
    assert not content(begins)


def test_a_run_that_appears_while_another_one_is_prepared_is_not_replaced(begun, tmp_path, monkeypatch):
    def slow(*args, **kwargs):
        prepared = prepare_run(*args, **kwargs)
        shutil.copytree(begun / "run", tmp_path / "run")  # another process begins later, and ends before
        return prepared

    monkeypatch.setattr(stages, "prepare_run", slow)
    settings = {
        **dict(parse_settings(SMALL)),
        "data.train": str(begun / "data.extxyz"),
        "trainer.max_steps": 2,
    }
    with pytest.raises(InputError, match="holds a run already"):
        api.train(settings, out=tmp_path / "run")
    assert content(tmp_path / "run") == content(begun / "run")


@pytest.mark.parametrize(
    "name", ["config.yaml", "data.json", "metrics.csv", "log.txt", "report.html", "test.json"]
)
def test_a_new_run_replaces_no_file_of_its_names(name, begun, tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "notes.txt").write_text("other names do not matter")
    (folder / name).write_text("# mine")
    before = content(folder)
    result = CliRunner().invoke(train_app, ["--data", str(begun / "data.extxyz"), "--out", str(folder)])
    assert name in str(result.exception)
    assert "is there, and would be replaced" in str(result.exception)
    with pytest.raises(InputError, match="is there, and would be replaced"):
        api.train({"data.train": begun / "data.extxyz"}, out=folder)
    assert content(folder) == before


def test_a_run_that_ended_before_its_first_checkpoint_may_be_begun_over(run):
    shutil.rmtree(run / "checkpoints")
    check_free(run)
    (run / "config.yaml").write_text("# mine")
    with pytest.raises(InputError, match=r"config\.yaml, --out: is there, and would be replaced"):
        check_free(run)
