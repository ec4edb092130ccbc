"""Checkpoints hold a whole potential, run no code, and say what is wrong with them."""

import zipfile

import numpy as np
import pytest
import torch

import pimlip_zoo
from pimlip_zoo.errors import InputError
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.registry import available_models, get_model
from pimlip_zoo.testing import as_graph, structure
from pimlip_zoo.training.checkpoint import (
    FORMAT_VERSION,
    KEY,
    build_potential,
    check_members,
    check_weights_differ,
    checkpoint_path,
    describe,
    load_potential,
    read_checkpoint,
)

SPECIES = ("H", "C", "O")


def a_potential(name="nequip", dtype=torch.float64, **options):
    info = get_model(name)
    model = info.model(info.configure(avg_num_neighbors=5.0, **options), SPECIES).to(dtype)
    return Potential(model, energy_references=torch.tensor([1.0, 2.0, 3.0]), scale=0.5)


def write(potential, path, **changes):
    description = {**describe(potential), **changes}
    weights = {f"potential.{name}": value for name, value in potential.state_dict().items()}
    torch.save({KEY: description, "state_dict": weights}, path)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_written_potential_is_the_same_function_when_read(tmp_path, dtype):
    potential = a_potential(dtype=dtype, channels=4, species_cutoffs=(("H", "H", 2.5),))
    loaded = load_potential(write(potential, tmp_path / "a.ckpt"))
    graph = as_graph(structure("molecule", SPECIES), SPECIES, potential.cutoff)
    expected, found = potential(graph), loaded(graph)
    assert torch.equal(expected.energy, found.energy)
    assert torch.equal(expected.forces, found.forces)
    assert loaded.model.config == potential.model.config


def test_every_architecture_can_be_described_and_built_again():
    for name in available_models():
        potential = a_potential(name)
        again = build_potential(describe(potential))
        assert again.model.config == potential.model.config
        assert {n: p.shape for n, p in again.named_parameters()} == {
            n: p.shape for n, p in potential.named_parameters()
        }


def test_a_description_is_made_of_plain_values():
    def plain(value):
        if isinstance(value, dict):
            return all(isinstance(k, str) and plain(v) for k, v in value.items())
        if isinstance(value, list):
            return all(plain(v) for v in value)
        return value is None or isinstance(value, (str, int, float, bool))

    assert plain(describe(a_potential(species_cutoffs=(("H", "H", 2.5),))))


def test_a_newer_format_is_refused(tmp_path):
    path = write(a_potential(), tmp_path / "a.ckpt", format_version=FORMAT_VERSION + 1)
    with pytest.raises(InputError, match="format version"):
        load_potential(path)


def test_a_truncated_file_is_refused_in_one_line(tmp_path):
    path = write(a_potential(), tmp_path / "a.ckpt")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match="not a readable checkpoint") as error:
        load_potential(path)
    assert "\n" not in str(error.value)
    assert "a.ckpt" in str(error.value)


def test_a_pickle_with_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "was_run"), "w"))

    torch.save({KEY: Evil()}, tmp_path / "a.ckpt")
    with pytest.raises(InputError):
        read_checkpoint(tmp_path / "a.ckpt")
    assert not (tmp_path / "was_run").exists()


def places(path, count):
    """Where bits are changed: spread over the file, in headers and content."""
    size = path.stat().st_size
    return np.random.default_rng(0).integers(0, size, count).tolist()


def test_a_changed_bit_never_changes_a_weight(tmp_path):
    path = write(a_potential(channels=4), tmp_path / "a.ckpt")
    raw, expected = path.read_bytes(), load_potential(path).state_dict()
    refused = 0
    for number, place in enumerate(places(path, 60)):
        changed = bytearray(raw)
        changed[place] ^= 1 << number % 8
        path.write_bytes(changed)
        try:
            found = load_potential(path).state_dict()
        except InputError:
            refused += 1
        else:  # in padding, or in a date
            assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert refused > 40


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path, dtype, wrong):
    potential = a_potential(dtype=dtype, channels=4)
    name, value = list(potential.model.named_parameters())[-1]
    with torch.no_grad():
        value.view(-1)[-1] = wrong
    write(potential, tmp_path / "a.ckpt")
    with pytest.raises(
        InputError, match=rf"a\.ckpt, potential\.model\.{name}: the weights are NaN or infinite"
    ):
        load_potential(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"species": None}, "species"),
        ({"species": ["H", 8]}, "species"),
        ({"species": ["H", "X", "O"]}, "'X' is not a chemical element"),
        ({"species": ["H", "H", "O"]}, "H is named twice"),
        ({"species": []}, "species"),
        ({"dtype": "float16"}, "'float16' is no precision"),
        ({"dtype": 3}, "dtype"),
        ({"model": ["nequip"]}, "model"),
        ({"model": "nequp"}, "did you mean nequip"),
        ({"config": {"cutoff": "five"}}, "cutoff"),
        ({"config": {1: 2}}, "a.ckpt"),
        ({"config": None}, "config"),
        ({"trainable_scale": None}, "trainable_scale"),
        ({"format_version": 0}, "format version"),
        ({"format_version": True}, "format version"),
        ({"summary": 3}, "summary"),
        ({"summary": {"baseline": {}}}, "baseline"),
        ({"summary": {"baseline": "gfn2"}}, "baseline"),
        ({"summary": {"labels": 3}}, "labels"),
    ],
)
def test_impossible_fields_are_named(tmp_path, changes, said):
    path = write(a_potential(channels=4), tmp_path / "a.ckpt", **changes)
    with pytest.raises(InputError, match=said) as error:
        load_potential(path)
    assert "a.ckpt" in str(error.value)


def test_a_field_that_is_not_there_is_named(tmp_path):
    potential = a_potential(channels=4)
    weights = {f"potential.{name}": value for name, value in potential.state_dict().items()}
    for gone in describe(potential):
        description = {name: value for name, value in describe(potential).items() if name != gone}
        torch.save({KEY: description, "state_dict": weights}, tmp_path / "a.ckpt")
        with pytest.raises(InputError, match=gone.replace("_", ".")):
            load_potential(tmp_path / "a.ckpt")
    torch.save({KEY: describe(potential)}, tmp_path / "a.ckpt")
    with pytest.raises(InputError, match="state_dict"):
        load_potential(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    ("trained", "found", "says"),
    [
        (torch.float32, torch.float64, "is torch.float64, and torch.float32"),
        (torch.float32, torch.bfloat16, "is torch.bfloat16, and torch.float"),
        (torch.float64, torch.float32, "is torch.float32, and torch.float64 here"),
    ],
)
def test_weights_of_another_precision_are_refused(tmp_path, trained, found, says):
    path = write(a_potential(dtype=trained), tmp_path / "a.ckpt")
    content = torch.load(path, weights_only=True)
    weights = content["state_dict"]
    content["state_dict"] = {name: value.to(found) for name, value in weights.items()}
    torch.save(content, path)
    with pytest.raises(InputError, match=says):
        load_potential(path)


def test_weights_that_a_lower_precision_does_not_hold_are_refused(tmp_path):
    potential = a_potential()
    with torch.no_grad():
        next(potential.model.parameters()).fill_(1e300)
    path = write(potential, tmp_path / "a.ckpt")
    assert load_potential(path).model.dtype == torch.float64
    with pytest.raises(InputError, match=r"larger than torch\.float32 holds"):
        load_potential(path, dtype=torch.float32)


def test_weights_of_another_shape_are_refused(tmp_path):
    potential = a_potential(channels=4)
    other = a_potential(channels=8)
    weights = {f"potential.{name}": value for name, value in other.state_dict().items()}
    torch.save({KEY: describe(potential), "state_dict": weights}, tmp_path / "a.ckpt")
    with pytest.raises(InputError, match="do not fit"):
        load_potential(tmp_path / "a.ckpt")


def test_a_run_without_weights_is_refused(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(InputError, match=r"no checkpoints/best\.ckpt"):
        checkpoint_path(tmp_path / "run")
    with pytest.raises(InputError, match="no such run"):
        checkpoint_path(tmp_path / "nowhere")


def test_best_is_preferred_and_last_stands_in(tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "last.ckpt").touch()
    assert checkpoint_path(tmp_path / "run").name == "last.ckpt"
    (folder / "best.ckpt").touch()
    assert checkpoint_path(tmp_path / "run").name == "best.ckpt"
    assert checkpoint_path(tmp_path / "run", "last").name == "last.ckpt"


@pytest.mark.parametrize("name", ["model.pimlip", "model.pth", "best.ckpt"])
def test_an_exported_file_is_said_to_be_one(tmp_path, name):
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.writestr("archive/extra/pimlip_format", "native")
        archive.writestr("archive/version", "3")
    with pytest.raises(InputError, match="is an exported file, and no checkpoint"):
        read_checkpoint(tmp_path / name)


def test_a_run_that_stands_twice_in_a_committee_is_refused_and_so_is_a_copy(tmp_path, monkeypatch):
    for name, content in (("a", b"one"), ("b", b"two"), ("copy", b"one")):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "checkpoints" / "best.ckpt").write_bytes(content)
    (tmp_path / "link").symlink_to("a")
    monkeypatch.chdir(tmp_path)
    check_members(["a", "b"])
    check_members(["a", "b/checkpoints/best.ckpt"])
    for runs in (["a", "a"], ["b", "a", "./a/"], ["a", "b", "copy"], ["a", "link"]):
        with pytest.raises(InputError, match="has the same weights as a, so that the two have no spread"):
            check_members(runs)


def test_the_same_weights_in_another_file_are_no_second_member(tmp_path):
    torch.manual_seed(0)
    one, other = a_potential(channels=4), a_potential(channels=4)
    write(one, tmp_path / "a.ckpt")
    write(one, tmp_path / "exported.ckpt", summary={"steps": 3})
    write(other, tmp_path / "b.ckpt")
    write(one.set_dtype(torch.float32), tmp_path / "rounded.ckpt")
    assert (tmp_path / "a.ckpt").read_bytes() != (tmp_path / "exported.ckpt").read_bytes()
    for name in ("exported", "rounded"):
        with pytest.raises(InputError, match=rf"{name}\.ckpt: has the same weights as .*a\.ckpt"):
            pimlip_zoo.calculator(tmp_path / "b.ckpt", tmp_path / "a.ckpt", tmp_path / f"{name}.ckpt")
    pimlip_zoo.calculator(tmp_path / "a.ckpt", tmp_path / "b.ckpt")
    check_weights_differ({"one": one})
