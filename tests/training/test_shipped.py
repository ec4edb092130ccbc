from itertools import product

import numpy as np
import pytest
import torch

from pimlip_zoo.config import load_config
from pimlip_zoo.datasets.builtin import load_builtin
from pimlip_zoo.errors import InputError
from pimlip_zoo.training import shipped
from pimlip_zoo.training.checkpoint import KEY, checkpoint_path, load_potential, read_checkpoint
from pimlip_zoo.training.finetune import start_from
from pimlip_zoo.weak_labels.ensemble import predict_labels

NAMES = [f"builtin:{name}/{model}" for name, start in shipped.STARTS.items() for model in start.checksums]


@pytest.mark.parametrize(("name", "dtype"), product(NAMES, [torch.float32, torch.float64]))
def test_a_molecule_that_was_left_out_has_the_energies_and_forces_of_gfn2(name, dtype):
    frames = load_builtin("ethanol-gfn2/test_600K")[:20]
    potential = load_potential(name, dtype=dtype)
    assert potential.species == ("H", "C", "N", "O", "F", "S", "Cl")
    found = predict_labels(potential, frames)
    forces = np.concatenate([a.forces - b.forces for a, b in zip(found, frames, strict=True)])
    energies = np.array([a.energy - b.energy for a, b in zip(found, frames, strict=True)]) / 9
    assert np.sqrt((forces**2).mean()) < FORCES
    assert np.sqrt((energies**2).mean()) < ENERGIES


FORCES, ENERGIES = 0.08, 0.005
"""eV/Å and eV per atom."""


@pytest.mark.parametrize("name", NAMES)
def test_the_files_are_small_hold_weights_alone_and_say_where_they_are_from(name):
    path = checkpoint_path(name)
    content = read_checkpoint(path)
    assert set(content) == {KEY, "state_dict"}
    assert content[KEY]["dtype"] == "float32"
    assert content[KEY]["origin"]["licence"] == "MIT, as the package"
    assert sum(file.stat().st_size for file in path.parent.iterdir()) < 5_000_000


@pytest.mark.parametrize("model", list(shipped.STARTS["organic-gfn2"].checksums))
def test_the_one_of_the_chosen_architecture_is_taken(model):
    options = [("finetune.run", "builtin:organic-gfn2"), ("model.name", model)]
    config = load_config(None, [*options, ("data.train", "builtin:ethanol-gfn2")])
    assert config.finetune.run == f"builtin:organic-gfn2/{model}"
    assert config.model.name == model
    assert config.recipe.name == "default"


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ("builtin:organic-gfn", "did you mean organic-gfn2"),
        ("builtin:organic-gfn2/schnet", "there is nequip, mace, allegro"),
        ("builtin:", "known"),
    ],
)
def test_a_name_that_there_is_not_is_refused_with_those_that_there_are(run, said):
    with pytest.raises(InputError) as caught:
        checkpoint_path(run)
    assert said in str(caught.value)
    assert run in str(caught.value)


def test_elements_beyond_it_are_refused_with_what_to_do():
    with pytest.raises(InputError, match="the data have Br") as caught:
        start_from("builtin:organic-gfn2", ["H", "Br"])
    assert "finetune.extend_species" in str(caught.value)


def test_a_file_that_was_changed_or_is_missing_is_refused(monkeypatch, tmp_path):
    name = NAMES[0]
    content = checkpoint_path(name).read_bytes()
    monkeypatch.setattr(shipped, "_FOLDER", tmp_path)
    with pytest.raises(InputError, match="missing"):
        checkpoint_path(name)
    file = tmp_path / f"{name.removeprefix('builtin:').replace('/', '-')}.ckpt"
    file.write_bytes(content[:-1] + b"x")
    with pytest.raises(InputError, match="not the file that came with the package"):
        checkpoint_path(name)


def test_a_file_that_changes_after_it_was_read_is_refused(monkeypatch, tmp_path):
    name = NAMES[0]
    file = tmp_path / f"{name.removeprefix('builtin:').replace('/', '-')}.ckpt"
    file.write_bytes(checkpoint_path(name).read_bytes())
    monkeypatch.setattr(shipped, "_FOLDER", tmp_path)
    checkpoint_path(name)
    file.write_bytes(b"another")
    with pytest.raises(InputError, match="not the file that came with the package"):
        checkpoint_path(name)
