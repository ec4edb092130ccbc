"""Files of ``nequip`` and ``nequip-allegro`` become potentials that compute the same; what cannot is refused."""

from __future__ import annotations

import io
import lzma
import re
import time
import zipfile
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import pimlip_zoo.foundation.nequip.potential as module
from agreement.reference import STRUCTURES, assert_agrees, load
from pimlip_zoo.cli.import_ import app
from pimlip_zoo.config import load_config
from pimlip_zoo.errors import InputError
from pimlip_zoo.foundation.nequip import import_potential
from pimlip_zoo.foundation.nequip.constants import check_constants
from pimlip_zoo.foundation.nequip.stored import StoredModel, read_model
from pimlip_zoo.models.allegro import Allegro
from pimlip_zoo.models.nequip import NequIP
from pimlip_zoo.training.checkpoint import load_potential

FOLDER = Path(__file__).parent
FILES = ("nequip_file", "nequip_file_single", "allegro_file")
SUFFIXES = (".ckpt", ".nequip.zip")


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files as the packages wrote them."""
    folder = tmp_path_factory.mktemp("nequip")
    for name in FILES:
        for suffix in SUFFIXES:
            packed = (FOLDER / f"{name}{suffix}.xz").read_bytes()
            (folder / f"{name}{suffix}").write_bytes(lzma.decompress(packed))
    return folder


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", FILES)
def test_a_file_computes_what_the_package_computed(name: str, suffix: str, files: Path) -> None:
    potential = import_potential(files / f"{name}{suffix}")
    double = name != "nequip_file_single"
    assert potential.model.dtype == (torch.float64 if double else torch.float32)
    for structure in STRUCTURES:
        assert_agrees(potential, load(name), structure, 1e-8 if double else 1e-5)


def test_the_weights_of_a_checkpoint_are_the_average_that_its_calculator_uses(files: Path) -> None:
    assert read_model(files / "nequip_file.ckpt").averaged
    assert not read_model(files / "nequip_file_single.ckpt").averaged
    potential = import_potential(files / "nequip_file.ckpt")
    assert not torch.equal(potential.energy_references, torch.tensor([-1.5, 2.5, 0.5, -0.25]).double())


@pytest.mark.parametrize("name", ["nequip_file.nequip.zip", "allegro_file.ckpt"])
def test_the_command_writes_a_run_that_can_be_loaded_and_its_configuration_read(
    name: str, files: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    result = CliRunner().invoke(app, ["nequip", str(files / name), "--out", str(folder)])
    assert result.exit_code == 0, result.output
    assert "H, C, N, O" in " ".join(result.output.split())
    potential = load_potential(folder)
    assert_agrees(potential, load(name.partition(".")[0]), "crystal")
    assert load_config(folder / "config.yaml", complete=True).model.configure() == potential.model.config


def test_nothing_of_a_file_is_executed(files: Path, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    torch.save({"state_dict": {}, "hyper_parameters": {"model": Payload()}}, tmp_path / "bad.ckpt")
    with pytest.raises(InputError, match=r"bad\.ckpt"):
        import_potential(tmp_path / "bad.ckpt")
    buffer = io.BytesIO()
    torch.save(Payload(), buffer)
    with zipfile.ZipFile(buffer) as saved:
        evil = saved.read("archive/data.pkl")
    repacked(files / "nequip_file.nequip.zip", tmp_path / "bad.nequip.zip", {"model/eager_model.pkl": evil})
    with pytest.raises(InputError, match=r"bad\.nequip\.zip"):
        import_potential(tmp_path / "bad.nequip.zip")
    assert not (tmp_path / "executed").exists()


def repacked(source: Path, target: Path, changed: dict[str, bytes]) -> None:
    """The package with other contents of some entries."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            content = changed.get(name.partition("/")[2], old.read(name))
            new.writestr(zipfile.ZipInfo(name), content)


BOMB = b"a0: &a0 [x, x]\n" + b"".join(
    b"a%d: &a%d [*a%d, *a%d]\n" % (n, n, n - 1, n - 1) for n in range(1, 40)
)
"""A few lines that stand for 2^40 items."""


def metadata(**changes: object) -> bytes:
    """What a package says of itself."""
    import yaml

    given = {"package_version_id": 2, "versions": {"nequip": "0.19.0"}, **changes}
    return yaml.safe_dump(given).encode()


@pytest.mark.parametrize(
    ("entry", "content", "text"),
    [
        ("package_metadata.txt", metadata(package_version_id=3), "version 3"),
        ("package_metadata.txt", metadata(package_version_id="x"), "version 'x'"),
        ("package_metadata.txt", metadata(versions={"nequip": "0.20.1"}), r"nequip 0\.20\.1"),
        ("package_metadata.txt", metadata(versions={}), "which version"),
        ("package_metadata.txt", b"[1, 2", "not valid YAML"),
        ("package_metadata.txt", b"\xff", "no text"),
        ("package_metadata.txt", BOMB, "package_metadata"),
        ("config.yaml", b"training_module: {}", "which model"),
        ("config.yaml", b"training_module: {model: {_target_: nequip.model.ModelFromPackage}}", "types None"),
        ("config.yaml", b"x", "not what nequip-package writes"),
    ],
)
def test_a_package_with_something_else_in_it_is_refused(
    entry: str, content: bytes, text: str, files: Path, tmp_path: Path
) -> None:
    file = tmp_path / "changed.nequip.zip"
    repacked(files / "nequip_file.nequip.zip", file, {f"model/{entry}": content})
    with pytest.raises(InputError, match=text) as error:
        import_potential(file)
    assert "changed.nequip.zip" in str(error.value)


def test_files_that_are_something_else_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.ckpt").write_text("no model")
    torch.save({"a": torch.zeros(2)}, tmp_path / "state.ckpt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "linear.ckpt")
    torch.save({"hyper_parameters": {"model": {}}, "state_dict": {}}, tmp_path / "lightning.ckpt")
    for name, text in (
        ("missing", "no such file"),
        ("text", "no zip archive"),
        ("state", "no training of nequip"),
        ("linear", "holds a Linear"),
        ("lightning", "which version of nequip"),
    ):
        with pytest.raises(InputError, match=text) as error:
            import_potential(tmp_path / f"{name}.ckpt")
        assert error.value.file is not None
        assert "\n" not in str(error.value)
        result = CliRunner().invoke(
            app, ["nequip", str(tmp_path / f"{name}.ckpt"), "-o", str(tmp_path / "run")]
        )
        assert isinstance(result.exception, InputError)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "changes", "text"),
    [
        ("nequip_file", {"_target_": "nequip.model.FullNequIPGNNModel"}, "FullNequIPGNNModel"),
        ("nequip_file", {"_target_": "nequip.model.modify", "modifiers": []}, "modify"),
        ("nequip_file", {"convnet_resnet": True}, "convnet_resnet = True"),
        ("nequip_file", {"pair_potential": {"_target_": "nequip.nn.pair_potential.ZBL"}}, "pair_potential"),
        ("nequip_file", {"num_features": [4, 2]}, "num_features"),
        ("nequip_file", {"type_embed_num_features": 3}, "type_embed_num_features"),
        ("nequip_file", {"avg_num_neighbors": {"H": 1.0}}, "avg_num_neighbors"),
        ("nequip_file", {"r_max": "4"}, "r_max"),
        ("nequip_file", {"num_layers": True}, "num_layers"),
        ("nequip_file", {"per_edge_type_cutoff": {"Xx": 2.0}}, "per_edge_type_cutoff"),
        ("nequip_file", {"readout_mlp_hidden_layers_depth": 1, "readout_mlp_nonlinearity": "mish"}, "mish"),
        ("nequip_file", {"an_option_of_tomorrow": 1}, "an_option_of_tomorrow"),
        ("nequip_file", {"type_names": ["H", "C", "N", "Zz"]}, "Zz"),
        ("nequip_file", {"type_names": None}, "types"),
        ("nequip_file", {"model_dtype": "float16"}, "model_dtype"),
        ("nequip_file", {"num_layers": 2}, "layer1_convnet"),
        ("nequip_file", {"num_layers": 10**6}, "at most 32"),
        ("nequip_file", {"num_features": 10**6}, "has at least"),
        ("allegro_file", {"num_scalar_features": 10**6}, "has at least"),
        (
            "allegro_file",
            {"radial_chemical_embed": {"_target_": "allegro.nn.TwoBodySplineScalarEmbed"}},
            "Spline",
        ),
        ("allegro_file", {"allegro_mlp_nonlinearity": "mish"}, "allegro_mlp_nonlinearity"),
    ],
)
def test_a_variant_that_is_not_supported_is_refused_by_name(
    name: str, changes: dict[str, object], text: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = read_model(files / f"{name}.ckpt")
    changed = StoredModel({**stored.options, **changes}, stored.weights, stored.averaged)
    monkeypatch.setattr(module, "read_model", lambda _: changed)
    with pytest.raises(InputError, match=text) as error:
        import_potential(files / f"{name}.ckpt")
    assert f"{name}.ckpt" in str(error.value)


def test_weights_that_are_not_finite_are_refused(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = read_model(files / "allegro_file.ckpt")
    stored.weights["allegro.tps.0.weights"].fill_(float("nan"))
    monkeypatch.setattr(module, "read_model", lambda _: stored)
    with pytest.raises(InputError, match=r"not finite in allegro\.tps\.0"):
        import_potential(files / "allegro_file.ckpt")


@pytest.mark.parametrize("kind", [torch.complex64, torch.int8, torch.bool])
def test_weights_that_are_no_real_numbers_are_refused(
    kind: torch.dtype, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = read_model(files / "allegro_file.ckpt")
    stored.weights["allegro.tps.0.weights"] = stored.weights["allegro.tps.0.weights"].to(kind)
    monkeypatch.setattr(module, "read_model", lambda _: stored)
    with pytest.raises(InputError, match=rf"numbers of the kind {str(kind)[6:]} in allegro\.tps\.0"):
        import_potential(files / "allegro_file.ckpt")


@pytest.mark.parametrize("name", ["shifts", "scales"])
def test_a_number_for_all_types_is_refused_where_the_options_have_one_for_each(
    name: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = read_model(files / "nequip_file.ckpt")
    stored.options[f"per_type_energy_{name}"] = dict.fromkeys(stored.options["type_names"], 1.0)
    stored.weights[f"per_type_energy_scale_shift.{name}"] = torch.ones(1)
    monkeypatch.setattr(module, "read_model", lambda _: stored)
    with pytest.raises(InputError, match=rf"has 1 {name} for \d types"):
        import_potential(files / "nequip_file.ckpt")


def test_frequencies_that_are_not_trained_have_to_be_the_usual_ones(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = read_model(files / "nequip_file.ckpt")
    (name,) = [name for name in stored.weights if name.endswith("bessel_weights")]
    stored.options["bessel_trainable"] = False
    stored.weights[name] = 1.1 * stored.weights[name]
    monkeypatch.setattr(module, "read_model", lambda _: stored)
    with pytest.raises(InputError, match=r"has other frequencies in .*bessel_weights than its options say"):
        import_potential(files / "nequip_file.ckpt")


WEIGHT = re.compile(r".*(weight|tps\.\d\.weights|bessel_weights|\.scales|\.shifts)")
UNUSED = re.compile(r".*(output_mask|\._w3j_\d_\d_\d)")
"""What nequip itself does not compute with: its energies stay the same when they are changed."""


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", FILES)
def test_each_number_that_is_no_weight_has_to_be_what_the_options_say(
    name: str, suffix: str, files: Path
) -> None:
    stored = read_model(files / f"{name}{suffix}")
    model = import_potential(files / f"{name}{suffix}").model
    assert isinstance(model, NequIP | Allegro)
    check_constants(model, stored.weights)
    compared = set()
    for key, value in stored.weights.items():
        if WEIGHT.fullmatch(key) or UNUSED.fullmatch(key) or not value.numel():
            continue
        compared.add(key.rpartition(".")[2])
        one = value.clone()
        one.view(-1)[-1] += 1e-4
        for changed in (1.25 * value, one, value.new_zeros(0), value.new_ones(1), value.new_ones(3)):
            with pytest.raises(InputError, match=rf"has other .* in {re.escape(key)} than its options say"):
                check_constants(model, {**stored.weights, key: changed})
    expected = {"_rmax_recip"} | ({"w3j"} if "allegro" in name else set())
    if suffix == ".nequip.zip":
        expected |= {"alpha", "norm_const"} | ({"_rtoi"} if "allegro" in name else set())
    assert compared == expected


def test_a_file_with_other_cutoffs_than_its_options_have_is_refused(files: Path, tmp_path: Path) -> None:
    content = torch.load(files / "nequip_file.ckpt", weights_only=False)
    (key,) = [key for key in content["state_dict"] if key.endswith("_rmax_recip")]
    content["state_dict"][key] = 1.25 * content["state_dict"][key]
    torch.save(content, tmp_path / "scaled.ckpt")
    with pytest.raises(InputError, match=r"scaled\.ckpt: has other cutoffs in edge_norm\._rmax_recip"):
        import_potential(tmp_path / "scaled.ckpt")


@pytest.mark.parametrize("name", ["nequip_file", "allegro_file"])
def test_high_degrees_in_many_layers_are_refused_before_they_are_built(
    name: str, files: Path, tmp_path: Path
) -> None:
    content = torch.load(files / f"{name}.ckpt", weights_only=False)
    content["hyper_parameters"]["model"].update(l_max=8, num_layers=32)
    torch.save(content, tmp_path / "deep.ckpt")
    began = time.process_time()
    with pytest.raises(InputError, match=r"deep\.ckpt, config: the model that it describes has at least"):
        import_potential(tmp_path / "deep.ckpt")
    assert time.process_time() - began < 2.0
