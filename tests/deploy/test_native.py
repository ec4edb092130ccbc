"""A native model computes what the potential computes, in every precision, on every structure, without torch."""

import ctypes
import dataclasses
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

import pimlip_zoo as pz
from pimlip_zoo.compiled.kernels.build import CompilerError
from pimlip_zoo.compiled.native.tensors import tensor_lines
from pimlip_zoo.datasets.frame import frame_to_atoms
from pimlip_zoo.deploy.ase import PimlipCalculator
from pimlip_zoo.deploy.committee import CommitteeCalculator
from pimlip_zoo.deploy.loading import load_exported
from pimlip_zoo.deploy.metadata import export_metadata, hashes_of_exports, read_metadata
from pimlip_zoo.deploy.native import library
from pimlip_zoo.deploy.native.archive import read_native, write_native
from pimlip_zoo.deploy.native.export import export_native
from pimlip_zoo.deploy.native.library import NativeModel, machine_level
from pimlip_zoo.deploy.selfcheck import check_structures, from_edges, pair_style_inputs
from pimlip_zoo.deploy.torchscript import prepared
from pimlip_zoo.errors import InputError
from pimlip_zoo.files import sealed
from pimlip_zoo.graph import edge_vectors
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.nn.zbl import ZBL
from pimlip_zoo.registry import get_model
from pimlip_zoo.testing import STRUCTURES, structure
from pimlip_zoo.training.checkpoint import save_potential

pytestmark = pytest.mark.compiler

SPECIES = ("H", "C", "O")
MODELS = {
    "nequip": {"channels": 4, "radial_hidden": (8,)},
    "nequip parities": {
        "channels": 3,
        "radial_hidden": (8, 5),
        "l_max": 1,
        "num_layers": 3,
        "parity": True,
        "resnet": True,
        "species_cutoffs": (("H", "H", 2.0), ("O", "H", 3.0)),
        "readout_hidden": (5,),
    },
    "nequip trainable basis": {"channels": 2, "radial_hidden": (4,), "l_max": 1, "bessel_trainable": True},
    "nequip channels by degree": {
        "channels_by_degree": (4, 3),
        "radial_hidden": (8,),
        "l_max": 1,
        "reflections": False,
        "self_connection_weights": "shared",
        "self_connection_first": True,
        "scalar_bias": True,
        "num_bessel": 3,
        "bessel_frequencies": (0.9, 2.1, 3.2),
        "cutoff_function": "xplor",
    },
    "allegro": {"scalar_channels": 8, "tensor_channels": 4, "l_max": 1, "latent_hidden": (8,)},
    "allegro residual": {
        "scalar_channels": 6,
        "tensor_channels": 3,
        "l_max": 2,
        "parity": False,
        "update": "residual",
        "path_channels": False,
        "nonlinearity": "tanh",
        "species_cutoffs": (("H", "C", 2.5),),
    },
    "mace": {"channels": 4, "l_max": 2, "radial_hidden": (8,), "correlation": 3},
    "mace linear": {"channels": 3, "l_max": 1, "hidden_l_max": 1, "radial_hidden": (8,), "correlation": 1},
    "mace density": {
        "channels": 3,
        "l_max": 2,
        "radial_hidden": (8,),
        "correlation": 2,
        "normalization": "density",
        "residual_first": True,
        "distance_transform": "agnesi",
        "readout_gate": "tanh",
    },
    "mace correlation 4": {
        "channels": 2,
        "l_max": 1,
        "radial_hidden": (4,),
        "correlation": 4,
        "num_interactions": 1,
        "coupling": "reduced",
    },
}


def build(name: str, dtype=torch.float64, *, zbl=False) -> Potential:
    torch.manual_seed(0)
    info = get_model(name.split(maxsplit=1)[0])
    config = info.configure(**MODELS[name], cutoff=4.0, avg_num_neighbors=6.0)
    potential = Potential(
        info.model(config, SPECIES),
        energy_references=torch.tensor([-1.0, -2.0, -3.0]),
        scale=torch.tensor([0.7, 1.3, 2.1]),
        repulsion=ZBL(SPECIES, cutoff=4.0) if zbl else None,
    )
    return potential.set_dtype(dtype).eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("native") / "model.pimlip"
    potential = build("nequip")
    export_native(potential, path, name="nequip")
    return potential, path


FAST = ("nequip parities", "allegro residual", "mace density")


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)
def test_every_option_is_the_potential_to_rounding(name, tmp_path):
    report = export_native(build(name), tmp_path / "model.pimlip")
    assert report.deviation < 1e-10


@pytest.mark.parametrize("name", ["nequip", "allegro", "mace"])
def test_single_precision_is_the_potential_in_single_precision(name, tmp_path):
    assert export_native(build(name, torch.float32), tmp_path / "model.pimlip").deviation < 1e-5


def test_repulsion_is_part_of_the_model(tmp_path):
    potential = build("nequip", zbl=True)
    assert export_native(potential, tmp_path / "model.pimlip").deviation < 1e-10


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("level", ["any", "v3", "v4"])
def test_threads_and_processors_do_not_matter(exported, threads, level):
    order = ["any", "v3", "v4"]
    if order.index(level) > order.index(machine_level()):
        pytest.skip("this processor lacks it")
    potential, path = exported
    model = NativeModel(path, threads=threads, level=level)
    for name, graph in check_structures(potential.cutoff, len(SPECIES)):
        expected = potential(graph)
        energy, gradient = model.evaluate(
            edge_vectors(graph).numpy(),
            graph.edge_index.numpy(),
            graph.species.numpy(),
            np.ones(len(graph.species)),
        )
        np.testing.assert_allclose(energy, expected.atomic_energy.detach(), atol=1e-11, err_msg=name)
        forces = np.zeros((len(energy), 3))
        np.add.at(forces, graph.edge_index[0], gradient)
        np.subtract.at(forces, graph.edge_index[1], gradient)
        np.testing.assert_allclose(forces, expected.forces.detach(), atol=1e-11, err_msg=name)


def test_the_gradient_is_that_of_the_local_atoms(exported):
    potential, path = exported
    graph = dict(check_structures(potential.cutoff, len(SPECIES)))["a periodic crystal"]
    local = torch.zeros(len(graph.species), dtype=torch.float64)
    local[:5] = 1.0
    inputs = {
        "edge_vectors": edge_vectors(graph),
        "edge_index": graph.edge_index,
        "atom_types": graph.species,
        "is_local": local,
    }
    from pimlip_zoo.deploy.module import PairStyleModule

    expected = PairStyleModule(potential)(inputs)
    evaluate, _ = load_exported(path)
    found = evaluate(inputs)
    torch.testing.assert_close(found["atomic_energy"], expected["atomic_energy"], rtol=0, atol=1e-11)
    # Of an edge and its opposite only the difference of the gradients is defined.
    for key, value in from_edges(graph, expected).items():
        torch.testing.assert_close(from_edges(graph, found)[key], value, rtol=0, atol=1e-11)


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.8])
def test_edges_without_their_opposites_are_computed_alone(exported, kept):
    potential, path = exported
    graph = dict(check_structures(potential.cutoff, len(SPECIES)))["a skewed cell thinner than the cutoff"]
    chosen = torch.rand(graph.edge_index.shape[1], generator=torch.Generator().manual_seed(1)) < kept
    forward = graph.edge_index[0] < graph.edge_index[1]
    chosen |= forward
    graph = graph._replace(edge_index=graph.edge_index[:, chosen], edge_shift=graph.edge_shift[chosen])
    # As coordinates of periodic images are in LAMMPS, vectors are opposite up to rounding only.
    vectors = edge_vectors(graph) + 1e-14 * torch.randn(len(graph.edge_shift), 3, dtype=torch.float64)
    inputs = {**pair_style_inputs(graph), "edge_vectors": vectors}
    from pimlip_zoo.deploy.module import PairStyleModule

    expected, found = PairStyleModule(potential)(inputs), load_exported(path)[0](inputs)
    for key, value in from_edges(graph, expected).items():
        torch.testing.assert_close(from_edges(graph, found)[key], value, rtol=0, atol=1e-11)


def test_no_atoms(exported):
    model = NativeModel(exported[1])
    found = model.structure(np.zeros((0, 3)), np.zeros(0, np.int64))
    assert found.energies.shape == (0,)
    assert found.edges == 0
    assert np.abs(found.virial).max() == 0


@pytest.mark.parametrize("name", STRUCTURES)
def test_the_calculator_is_that_of_the_potential(exported, name):
    potential, path = exported
    frame = structure(name, SPECIES)
    atoms, same = frame_to_atoms(frame), frame_to_atoms(frame)
    atoms.calc, same.calc = pz.calculator(path), PimlipCalculator(potential)
    assert atoms.get_potential_energy() == pytest.approx(same.get_potential_energy(), abs=1e-11)
    np.testing.assert_allclose(atoms.get_forces(), same.get_forces(), atol=1e-11)
    np.testing.assert_allclose(atoms.get_potential_energies(), same.get_potential_energies(), atol=1e-11)
    if "stress" in same.calc.results:
        np.testing.assert_allclose(atoms.get_stress(), same.get_stress(), atol=1e-12)


def test_lists_with_a_skin_follow_moving_atoms(exported):
    _, path = exported
    atoms = frame_to_atoms(structure("left_handed", SPECIES))
    atoms.calc = pz.calculator(path, skin=0.6)
    other = atoms.copy()
    random = np.random.default_rng(0)
    for _ in range(6):
        atoms.positions += 0.05 * random.normal(size=atoms.positions.shape)
        other.positions = atoms.positions.copy()
        other.calc = pz.calculator(path, skin=0.0)
        np.testing.assert_allclose(atoms.get_forces(), other.get_forces(), atol=1e-11)
    assert atoms.calc.neighbours.builds < 6


def test_native_models_form_committees(exported):
    _, path = exported
    atoms = frame_to_atoms(structure("molecule", SPECIES))
    with pytest.raises(InputError, match="has the same weights as"):
        pz.calculator(path, path)
    atoms.calc = CommitteeCalculator([pz.calculator(path), pz.calculator(path)])
    one = atoms.copy()
    one.calc = pz.calculator(path)
    assert atoms.get_potential_energy() == pytest.approx(one.get_potential_energy(), abs=1e-11)


def test_an_export_beside_its_run_or_another_export_of_it_is_no_second_member(exported, tmp_path):
    potential, model = exported
    run, stranger, again = tmp_path / "run.ckpt", tmp_path / "other.ckpt", tmp_path / "again.pimlip"
    save_potential(potential, run)
    other = build("nequip")
    with torch.no_grad():
        next(other.model.parameters()).add_(0.1)
    save_potential(other, stranger)
    content = read_native(model)
    write_native(again, dataclasses.replace(content, metadata={**content.metadata, "training": '{"day": 2}'}))
    for members in ((run, model), (model, stranger, run), (stranger, model, run)):
        with pytest.raises(InputError, match=r"model\.pimlip: has the same weights as .*run\.ckpt"):
            pz.calculator(*members)
    with pytest.raises(InputError, match=r"again\.pimlip: has the same weights as .*model\.pimlip"):
        pz.calculator(model, again)
    pz.calculator(model, stranger)


@pytest.mark.parametrize("trained", [torch.float32, torch.float64])
@pytest.mark.parametrize("written", [None, torch.float32, torch.float64])
def test_the_hash_of_an_export_is_known_of_its_run_in_every_precision(trained, written):
    potential = build("nequip", trained)
    ready = prepared(potential, written)
    metadata = export_metadata(ready, name="nequip", dtype=ready.model.dtype, training={})
    assert metadata["weights_sha256"] in hashes_of_exports(potential)
    assert potential.model.dtype == trained


def test_torch_is_not_needed(exported):
    program = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "import pimlip_zoo, ase\n"
        "atoms = ase.Atoms('HCO', [[0, 0, 0], [0, 0, 1.1], [0, 1.2, 1.5]])\n"
        f"atoms.calc = pimlip_zoo.calculator({str(exported[1])!r})\n"
        "print(atoms.get_potential_energy())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0


def test_the_metadata_are_those_of_other_files(exported):
    metadata = read_metadata(exported[1])
    assert metadata["model_name"] == "nequip"
    assert metadata["type_names"] == "H C O"
    assert metadata["r_max"] == "4.0"
    assert metadata["interaction_depth"] == "3"


def test_wrong_edges_are_refused(exported):
    model = NativeModel(exported[1])
    vectors, species, ones = np.ones((2, 3)), np.zeros(2, np.int64), np.ones(2)
    with pytest.raises(ValueError, match="species"):
        model.evaluate(vectors, np.array([[0, 1], [1, 0]]), np.array([0, 7]), ones)
    with pytest.raises(ValueError, match="atom that is not there"):
        model.evaluate(vectors, np.array([[0, 1], [1, 2]]), species, ones)
    with pytest.raises(ValueError, match="not sorted"):
        model.evaluate(vectors, np.array([[1, 0], [0, 1]]), species, ones)


def test_truncated_files_are_refused(exported, tmp_path):
    short = tmp_path / "short.pimlip"
    short.write_bytes(exported[1].read_bytes()[:5000])
    with pytest.raises(InputError, match="not a complete exported model"):
        NativeModel(short)


@pytest.mark.parametrize("keep", [0, 4096, -1])
def test_a_damaged_program_in_the_cache_is_compiled_again(tmp_path, monkeypatch, keep):
    source = f"long pimlip_workspace, pimlip_evaluate, pimlip_structure, number = {keep};"
    monkeypatch.setattr(library, "cache_folder", lambda: tmp_path)
    library._load(source, "any", "a.pimlip")
    (built,) = tmp_path.glob("*.so")
    whole = built.read_bytes()
    built.unlink()  # this process has that one mapped
    built.write_bytes(whole[:keep])
    loaded = library._load(source, "any", "a.pimlip")
    assert ctypes.c_long.in_dll(loaded, "number").value == keep
    assert sealed(built)


SHORTENED = """
import os, sys
from pathlib import Path
import numpy as np
import pimlip_zoo, ase
from pimlip_zoo.deploy.native import library
library.cache_folder = lambda: Path(sys.argv[2])
atoms = ase.Atoms("HCO", [[0, 0, 0], [0, 0, 1.2], [0, 1.1, 0]], calculator=pimlip_zoo.calculator(sys.argv[1]))
first = atoms.get_potential_energy()
(built,) = Path(sys.argv[2]).glob("*.so")
assert not [path for path in Path(sys.argv[2]).iterdir() if path.is_dir()], "nothing is left"
for keep in (4096, 0):
    os.truncate(built, keep)
    atoms.positions[2, 1] += 0.1
    assert np.isfinite(atoms.get_forces()).all()
atoms.positions[2, 1] -= 0.2
assert abs(atoms.get_potential_energy() - first) < 1e-12
"""


def test_a_program_that_is_shortened_while_a_calculator_lives_ends_no_process(exported, tmp_path):
    command = [sys.executable, "-c", SHORTENED, str(exported[1]), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_other_versions_are_refused(exported, tmp_path):
    content = read_native(exported[1])
    other = tmp_path / "other.pimlip"
    write_native(other, dataclasses.replace(content, metadata={**content.metadata, "pimlip_format": "99"}))
    with pytest.raises(InputError, match="version 99"):
        NativeModel(other)


def test_missing_weights_are_refused(exported, tmp_path):
    content = read_native(exported[1])
    other = tmp_path / "other.pimlip"
    write_native(other, dataclasses.replace(content, weights=content.weights[:-64]))
    with pytest.raises(InputError, match="weights are not complete"):
        NativeModel(other)


@pytest.mark.parametrize("name", ["model-16.c", "model-32.c", "model-64.c", "extra/model-16.c"])
def test_code_that_has_not_the_hash_that_the_file_claims_is_refused(exported, tmp_path, name):
    path = tmp_path / "other.pimlip"
    with zipfile.ZipFile(exported[1]) as old, zipfile.ZipFile(path, "w") as new:
        for item in old.infolist():
            content = old.read(item.filename)
            new.writestr(item, content[::-1] if item.filename == f"pimlip/{name}" else content)
    with pytest.raises(InputError, match=r"the hash of model-\d\d.c is not that of its text"):
        NativeModel(path)


def test_other_archives_are_refused(tmp_path):
    path = tmp_path / "other.pimlip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello", "world")
    with pytest.raises(InputError, match="no metadata of pimlip-zoo"):
        NativeModel(path)


def test_without_a_compiler_the_mend_is_named(exported, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(InputError, match="no-such-compiler is not an executable"):
        NativeModel(exported[1])


def test_an_export_without_a_compiler_names_the_mend(tmp_path, monkeypatch):
    def refuse(_):
        raise CompilerError("no C compiler (cc, gcc or clang) on PATH")

    monkeypatch.setattr("pimlip_zoo.compiled.sweeps.run.build_together", refuse)
    with pytest.raises(InputError, match=r"needs a C compiler: no C compiler .*use torchscript"):
        export_native(build("nequip"), tmp_path / "model.pimlip")
    assert not list(tmp_path.iterdir())


def test_what_has_no_native_form_is_named():
    from pimlip_zoo.compiled.native.program import Size, TensorOp, View

    view = View(0, torch.float64, (Size(1),), (Size(1),), Size(0))
    with pytest.raises(InputError, match="linalg_svd") as refused:
        tensor_lines(TensorOp("linalg_svd", (view,), {}, view))
    assert "torchscript or aot" in str(refused.value)


def test_direct_forces_are_refused(tmp_path):
    info = get_model("nequip")
    config = info.configure(channels=2, radial_hidden=(4,), cutoff=4.0, force_head="direct")
    with pytest.raises(InputError, match="direct force head"):
        export_native(Potential(info.model(config, SPECIES)), tmp_path / "model.pimlip")
    assert not list(tmp_path.iterdir())
