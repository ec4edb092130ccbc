"""Checkpoints of ``sevenn`` become potentials that compute the same; what cannot is refused in one line."""

from __future__ import annotations

import importlib.util
import lzma
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from e3nn import o3
from typer.testing import CliRunner

from pimlip_zoo.cli.import_ import app, run_of
from pimlip_zoo.compiled.kernels import use_kernels
from pimlip_zoo.config import load_config
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.neighbours import frame_to_sample
from pimlip_zoo.errors import InputError
from pimlip_zoo.foundation.sevennet import NAMES, find_file, import_potential
from pimlip_zoo.graph import stress_from_virial
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.training.checkpoint import load_potential

FOLDER = Path(__file__).parent
TINY = [
    ("degrees", None),
    ("parity", None),
    ("both", None),  # irreps of both parities in a layer that is not the last
    ("both_linear", None),
    ("levels", "low"),
    ("levels", "high"),
]
REAL = [
    ("7net-0_11July2024", None),
    ("7net-0_22May2024", None),
    ("7net-l3i5", None),
    ("7net-mf-0", "PBE"),
    ("7net-mf-0", "R2SCAN"),
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny models as the package saved them."""
    folder = tmp_path_factory.mktemp("sevennet")
    files = {name: folder / f"{name}.pth" for name, _ in TINY}
    for name, file in files.items():
        file.write_bytes(lzma.decompress((FOLDER / f"sevennet_{name}.pth.xz").read_bytes()))
    return files


@pytest.fixture(scope="module")
def stored() -> dict[str, dict[str, np.ndarray]]:
    """What the package computed, by the name of the fixture."""
    found = {}
    for name in ("tiny", "real"):
        with np.load(FOLDER / f"sevennet_{name}.npz", allow_pickle=False) as file:
            found[name] = dict(file)
    return found


def assert_equal(potential: Potential, arrays: dict[str, np.ndarray], key: str) -> int:
    """In float64 to 1e-8 of the largest number, in float32 to 1e-5 eV/Å; how many structures there are."""
    dtype, count = potential.model.dtype, 0
    for name in (entry.split("/")[0] for entry in arrays if entry.endswith("/numbers")):
        parts = {part: arrays[f"{name}/{part}"] for part in ("numbers", "positions", "cell", "pbc")}
        graph = frame_to_sample(Frame(**parts), potential.species, potential.cutoff).graph
        with torch.no_grad():
            found = potential(graph)
        energy, forces = (arrays[f"{key}/{name}/{what}"] for what in ("energy", "forces"))
        stress = arrays.get(f"{key}/{name}/stress")
        if dtype == torch.float32:
            assert np.abs(found.forces.numpy() - forces).max() < 1e-5, name
            assert abs(found.energy.item() - energy) < 1e-5 * len(forces), name
        else:
            assert found.energy.item() == pytest.approx(float(energy), rel=1e-8), name
            assert np.abs(found.forces.numpy() - forces).max() < 1e-8 * max(np.abs(forces).max(), 0.1), name
        if stress is not None and dtype == torch.float64:
            ours = stress_from_virial(found.virial, graph.cell)[0].numpy()
            voigt = ours[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
            assert np.abs(voigt - stress).max() < 1e-8 * max(np.abs(stress).max(), 1e-3), name
        count += 1
    return count


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(("name", "level"), TINY)
def test_a_checkpoint_of_every_option_computes_what_the_package_computed(
    name: str, level: str | None, backend: str, checkpoints: Any, stored: Any
) -> None:
    key = name if level is None else f"{name}@{level}"
    with use_kernels(backend):
        for dtype in (torch.float64, None):
            potential = import_potential(checkpoints[name], level=level, dtype=dtype)
            assert assert_equal(potential, stored["tiny"], key) == 3


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("sevenn") is None, reason="the weights are in the package sevenn"
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("name", "level"), REAL)
def test_published_weights_compute_what_the_package_computes_on_34_structures_of_38_elements(
    name: str, level: str | None, dtype: torch.dtype, stored: Any
) -> None:
    key = name if level is None else f"{name}@{level}"
    potential = import_potential(find_file(name), level=level, dtype=dtype)
    assert assert_equal(potential, stored["real"], key) == 34


def _rewritten(file: Path, target: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Path:
    """A checkpoint with other options and weights."""
    content = torch.load(file, weights_only=False)
    change(content["config"], content["model_state_dict"])
    torch.save(content, target)
    return target


def _as_in_version_0_9(config: dict[str, Any], state: dict[str, Any]) -> None:
    """Names with spaces, radial weights in the order of the loops, and a coupling of the other sign."""
    config["version"] = "0.9.1"
    widths = {0: 8, 1: 4, 2: 2}
    for layer, features in enumerate([(0,), (0, 1, 2), (0, 1, 2)]):
        degrees = range(1) if layer == 2 else range(3)
        paths = [(a, b, c) for a in features for b in range(3) for c in degrees if abs(a - b) <= c <= a + b]
        order = sorted(range(len(paths)), key=lambda p: paths[p][2])
        name = f"{layer}_convolution.weight_nn.layer1.weight"
        parts = dict(zip(order, state[name].split([widths[paths[p][0]] for p in order], 1), strict=True))
        flipped = (2, 1, 2) if layer == 1 else None
        coupling = f"{layer}_convolution.convolution._compiled_main_left_right._w3j_2_1_2"
        if flipped:
            state[coupling] = -state[coupling]
        state[name] = torch.cat(
            [-parts[p] if paths[p] == flipped else parts[p] for p in range(len(paths))], dim=1
        )
    for name in list(state):
        module, _, rest = name.partition(".")
        old = {"edge_embedding": "EdgeEmbedding", "reduce_input_to_hidden": "reducing nn input to hidden"}
        module = old.get(module, module.replace("_", " ") if "convolution" in module else module)
        state[f"{module}.{rest.replace('denominator', 'denumerator')}"] = state.pop(name)


def test_an_early_checkpoint_is_read_like_a_new_one(checkpoints: Any, tmp_path: Path) -> None:
    early = _rewritten(checkpoints["degrees"], tmp_path / "early.pth", _as_in_version_0_9)
    new, old = import_potential(checkpoints["degrees"]).state_dict(), import_potential(early).state_dict()
    assert new.keys() == old.keys()
    assert all(torch.equal(new[name], old[name]) for name in new)


def test_channels_of_each_degree_are_those_of_the_file_and_nothing_is_padded(checkpoints: Any) -> None:
    potential = import_potential(checkpoints["degrees"])
    assert potential.model.config.channels_by_degree == (8, 4, 2)
    assert potential.model.layers[0].irreps_out == o3.Irreps("8x0e+4x1e+2x2e")
    content = torch.load(checkpoints["degrees"], weights_only=False)["model_state_dict"]
    ours = sum(weight.numel() for weight in potential.model.layers.parameters())
    theirs = sum(
        value.numel()
        for name, value in content.items()
        if name[0].isdigit() and name.endswith("weight") and ".mul." not in name
    )
    assert ours == theirs


def test_the_command_writes_a_run_that_can_be_loaded_and_its_configuration_read(
    checkpoints: Any, stored: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    given = [
        "sevennet",
        str(checkpoints["levels"]),
        "--level",
        "HIGH",
        "--dtype",
        "float64",
        "-o",
        str(folder),
    ]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    assert "4 elements: C, H, N, O" in " ".join(result.output.split())
    potential = load_potential(folder)
    assert_equal(potential, stored["tiny"], "levels@high")
    config = load_config(folder / "config.yaml", complete=True)
    assert config.model.configure() == potential.model.config
    again = CliRunner().invoke(app, given)
    assert isinstance(again.exception, InputError)


def test_nothing_of_a_file_is_executed(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    file = tmp_path / "bad.pth"
    torch.save({"config": Payload(), "model_state_dict": Payload()}, file)
    with pytest.raises(InputError, match=r"bad\.pth"):
        import_potential(file)
    assert not (tmp_path / "executed").exists()
    torch.load(file, weights_only=False)
    assert (tmp_path / "executed").exists()


def _option(name: str, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda config, _: config.update({name: value})


def _weight(name: str, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda _, state: state.update({name: value})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_option("version", "0.14.1"), r"written by sevenn 0\.14\.1, and versions up to 0\.13"),
        (_option("version", "1.0.0"), "update pimlip-zoo"),
        (_option("version", None), "no version"),
        (_option("_model_type", "other"), "_model_type"),
        (_option("readout_as_fcn", True), "readout_as_fcn"),
        (_option("act_radial", "ssp"), "act_radial = 'ssp'"),
        (_option("act_gate", {"e": "ssp", "o": "tanh"}), "act_gate"),
        (_option("self_connection_type", ["linear", "nequip", "linear"]), "self-connections"),
        (_option("cutoff_function", {"cutoff_function_name": "cosine"}), "known: poly_cut, XPLOR"),
        (_option("lmax_edge", 3), "harmonics up to degree 3"),
        (_option("irreps_manual", ["8x0e", "8x0e+4x1e+2x2e", "8x0e", "8x0e"]), "layer|weights"),
        (_option("irreps_manual", ["8x0e", "4x1e+8x0e", "8x0e+4x1e", "8x0e"]), "the order of e3nn"),
        (_option("irreps_manual", ["999999999x0e"] * 4), "cannot be converted"),
        (_option("irreps_manual", ["__import__('os')"] * 4), "no irreps"),
        (_option("num_convolution_layer", 10**6), "cannot be converted"),
        (_option("_type_map", {6: 0, 1: 1, 7: 2, 400: 3}), "atomic numbers"),
        (_option("_type_map", {6: 0, 1: 1, 7: 2}), "expected|weights"),
        (_option("use_modality", True), "without names"),
        (_weight("0_self_interaction_1.linear.weight", torch.zeros(3)), "3 weights"),
        (_weight("1_convolution.weight_nn.layer1.weight", torch.zeros(6, 3)), "radial functions of layer 1"),
        (
            _weight("short_range.linear.weight", torch.ones(3)),
            r"weights short_range\.linear\.weight, of a part",
        ),
        (
            _weight("1_self_interaction_1.linear.bias", torch.ones(8)),
            "biases in layer 1, and options without",
        ),
        (_weight("1_convolution.denominator", torch.ones(2)), "not laid out"),
        (_weight("2_self_interaction_2.linear.weight", torch.full((48,), torch.nan)), "not finite"),
        (_weight("edge_embedding.basis_function.coeffs", torch.zeros(0)), "0 frequencies of 5 radial"),
        (_weight("rescale_atomic_energy.shift", torch.ones(1)), "shift of energies for 1 elements, and 4"),
        (_weight("rescale_atomic_energy.scale", torch.ones(1)), "scale of energies for 1 elements, and 4"),
        *(
            (_weight(name, torch.ones(1).to(kind)), f"numbers of the kind {str(kind)[6:]} in {name}")
            for name, kind in (
                ("edge_embedding.basis_function.coeffs", torch.complex64),
                ("1_convolution.denominator", torch.bool),
                ("rescale_atomic_energy.scale", torch.int64),
            )
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_converted_is_refused_in_one_line_by_name(
    change: Any, text: str, checkpoints: Any, tmp_path: Path
) -> None:
    file = _rewritten(checkpoints["degrees"], tmp_path / "changed.pth", change)
    with pytest.raises(InputError, match=text) as error:
        import_potential(file)
    assert str(error.value).startswith(str(file))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "level", "text"),
    [
        ("levels", None, "low, high.*--level"),
        ("levels", "hgh", "did you mean high"),
        ("degrees", "low", "single level"),
    ],
)
def test_a_level_of_theory_has_to_be_one_of_the_file(
    name: str, level: str | None, text: str, checkpoints: Any
) -> None:
    with pytest.raises(InputError, match=text):
        import_potential(checkpoints[name], level=level)


def test_files_that_are_something_else_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("no model")
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "state.pth")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "linear.pth")
    torch.save({"config": {}, "model_state_dict": {}}, tmp_path / "empty.pth")
    for name, text in (
        ("missing", "no such file"),
        ("text", "not a file that torch.save wrote"),
        ("state", "not a checkpoint of sevenn"),
        ("linear", "holds a Linear"),
        ("empty", "no version"),
    ):
        with pytest.raises(InputError, match=text) as error:
            import_potential(tmp_path / f"{name}.pth")
        assert error.value.file is not None


def test_a_name_is_found_in_an_installed_package_without_importing_it(
    checkpoints: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"7net-0 is in the package sevenn.*pip install"):
        find_file("7net-0")
    folder = tmp_path / "sevenn"
    (folder / "pretrained_potentials" / "SevenNet_l3i5").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    file = folder / "pretrained_potentials" / NAMES["7net-l3i5"]
    file.write_bytes(checkpoints["degrees"].read_bytes())
    spec = SimpleNamespace(submodule_search_locations=[str(folder)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec)
    assert find_file("7NET-L3i5") == file
    with pytest.raises(InputError, match="has no such file"):
        find_file("7net-0")
    assert find_file(checkpoints["levels"]) == checkpoints["levels"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("7net", "did you mean"),
        ("7net-omni", "which downloads them"),
        ("folder/model.pth", "no such file"),
    ],
)
def test_a_name_that_is_none_is_refused_with_what_there_is(name: str, text: str) -> None:
    with pytest.raises(InputError, match=text):
        find_file(name)


def test_a_name_stands_for_a_run_that_is_converted_once(
    checkpoints: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("pimlip_zoo.foundation.sevennet.find_file", lambda _: checkpoints["levels"])
    run = Path(run_of("7net-mf-0:high"))
    before = (run / "config.yaml").stat().st_mtime_ns
    assert run_of("7NET-MF-0:HIGH") == str(run)
    assert (run / "config.yaml").stat().st_mtime_ns == before
    assert load_potential(run).species == ("C", "H", "N", "O")
    with pytest.raises(InputError, match="low, high"):
        run_of("7net-mf-0")
    assert [entry.name for entry in run.parent.iterdir()] == [run.name]
    assert run_of("runs/mine") == "runs/mine"


def test_high_degrees_in_many_layers_are_refused_before_they_are_built(
    checkpoints: Any, tmp_path: Path
) -> None:
    def deep(config: dict[str, Any], state: dict[str, Any]) -> None:
        config.update(lmax=8, num_convolution_layer=32, irreps_manual=False)
        for layer in range(32):
            state[f"{layer}_self_interaction_1.linear.weight"] = torch.zeros(8 * 8 * 9)
            state[f"{layer}_convolution.denominator"] = torch.ones(1)
            for number in range(3):
                name = f"convolution.weight_nn.layer{number}.weight"
                if f"0_{name}" in state:
                    state[f"{layer}_{name}"] = state[f"0_{name}"]

    file = _rewritten(checkpoints["degrees"], tmp_path / "deep.pth", deep)
    began = time.process_time()
    with pytest.raises(InputError, match=r"deep\.pth, config: the model that it describes has at least"):
        import_potential(file)
    assert time.process_time() - began < 2.0
