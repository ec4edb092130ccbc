"""Models of ``mace-torch`` become potentials that compute the same; what cannot is refused in one line."""

from __future__ import annotations

import io
import lzma
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from e3nn import o3
from e3nn.nn import Gate
from typer.testing import CliRunner

import pimlip_zoo.foundation.mace_torch.potential as module
from agreement.reference import STRUCTURES, Reference, assert_agrees, load
from pimlip_zoo.cli.import_ import app
from pimlip_zoo.config import load_config
from pimlip_zoo.errors import InputError
from pimlip_zoo.foundation.mace_torch import import_potential
from pimlip_zoo.foundation.mace_torch.potential import read_records
from pimlip_zoo.foundation.objects import state_of
from pimlip_zoo.foundation.unpickle import Named, Record
from pimlip_zoo.training.checkpoint import load_potential

MODEL = Path(__file__).parent / "mace_heads.model"
HEADS = ("small", "large")


def reference(head: str) -> Reference:
    """The fixture's values of one head."""
    whole = load("mace_heads")
    prefix = f"{head}/"
    arrays = {k.removeprefix(prefix): v for k, v in whole.arrays.items() if k.startswith(prefix)}
    return Reference(whole.config, whole.species, {}, arrays)


@pytest.mark.parametrize("gate", ["none", "tanh"])
def test_a_file_with_another_gate_computes_what_the_package_computed(gate: str, tmp_path: Path) -> None:
    folder, file = Path(__file__).parent, tmp_path / "gate.model"
    file.write_bytes(lzma.decompress((folder / f"mace_gate_{gate}.model.xz").read_bytes()))
    potential = import_potential(file)
    assert potential.model.config.readout_gate == {"none": "identity", "tanh": "tanh"}[gate]
    for structure in STRUCTURES:
        assert_agrees(potential, load(f"mace_gate_{gate}"), structure, 1e-10)


def unpacked(name: str, folder: Path) -> Path:
    """A file as the package saved it."""
    file = folder / f"{name}.model"
    file.write_bytes(lzma.decompress((Path(__file__).parent / f"{name}.model.xz").read_bytes()))
    return file


def case(name: str, index: int) -> Reference:
    """The fixture's values of one case: a head, or a charge and a spin."""
    whole = load(name)
    arrays = {k.removeprefix(f"{index}/"): v for k, v in whole.arrays.items()}
    return Reference(whole.config, whole.species, {}, arrays)


@pytest.mark.parametrize("name", ["mp0", "mpa0", pytest.param("off", marks=pytest.mark.slow)])
def test_a_layout_of_the_published_models_computes_what_the_package_computed(
    name: str, tmp_path: Path
) -> None:
    potential = import_potential(unpacked(f"mace_layout_{name}", tmp_path))
    reference = case(f"mace_layout_{name}", 0)
    assert len(potential.species) == {"mp0": 5, "mpa0": 89, "off": 10}[name]
    assert (potential.repulsion is not None) == (name == "mpa0")
    for structure in STRUCTURES:
        assert_agrees(potential, reference, structure)
    potential.set_dtype(torch.float32)
    assert_agrees(potential, reference, "crystal", 1e-5)


@pytest.fixture(scope="module")
def unpacked_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of models with nonlinear interactions."""
    folder = tmp_path_factory.mktemp("layouts")
    return {name: unpacked(f"mace_layout_{name}", folder) for name in ("mh", "omol")}


@pytest.mark.parametrize(("index", "head"), enumerate(("omat_pbe", "omol", "spice_wB97M")))
def test_a_head_of_mace_mh_computes_what_the_package_computed(
    index: int, head: str, unpacked_files: dict[str, Path]
) -> None:
    potential = import_potential(unpacked_files["mh"], head=head)
    assert type(potential.model).__name__ == "MACENonlinear"
    assert potential.repulsion is not None
    reference = case("mace_layout_mh", index)
    for structure in STRUCTURES:
        assert_agrees(potential, reference, structure)
    potential.set_dtype(torch.float32)
    assert_agrees(potential, reference, "crystal", 1e-4)


@pytest.mark.parametrize(("index", "charge", "multiplicity"), [(0, 0, 1), (1, -2, 3)])
def test_a_state_of_mace_omol_computes_what_the_package_computed(
    index: int, charge: int, multiplicity: int, unpacked_files: dict[str, Path]
) -> None:
    potential = import_potential(unpacked_files["omol"])
    reference = case("mace_layout_omol", index)
    for structure in STRUCTURES:
        assert_agrees(potential, reference, structure, electrons=(charge, multiplicity))
    assert_agrees(potential.with_electrons(charge, multiplicity), reference, "acetamide")
    if index == 0:
        assert_agrees(potential, reference, "acetamide")  # neutral and a singlet unless something is said


LATER = {
    "": (
        *("heads", "apply_cutoff", "edge_irreps", "use_reduced_cg", "use_agnostic_product", "use_so3"),
        *("use_last_readout_only", "use_edge_irreps_first", "lammps_mliap", "pair_repulsion"),
    ),
    "radial_embedding": ("apply_cutoff",),
    "products.0": ("use_agnostic_product", "cueq_config"),
    "products.1": ("use_agnostic_product", "cueq_config"),
    "interactions.0": ("cueq_config", "oeq_config", "edge_irreps", "radial_MLP"),
    "interactions.1": ("cueq_config", "oeq_config", "edge_irreps", "radial_MLP"),
    "readouts.1": ("num_heads",),
}
"""What files of mace-torch 0.3.0, such as the first published models, do not have."""


def test_a_file_of_an_older_version_lacks_attributes_and_computes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = unpacked("mace_layout_mp0", tmp_path)
    record = read_records(file)
    for path, names in LATER.items():
        for name in names:
            (record[path] if path else record).attributes.pop(name, None)
    monkeypatch.setattr(module, "read_records", lambda _: record)
    assert_agrees(import_potential(file), case("mace_layout_mp0", 0), "crystal")


@pytest.mark.parametrize("head", HEADS)
def test_each_head_of_a_file_computes_what_the_package_computed(head: str) -> None:
    potential = import_potential(MODEL, head=head)
    assert potential.repulsion is not None
    for structure in STRUCTURES:
        assert_agrees(potential, reference(head), structure)


def test_the_command_writes_a_run_that_can_be_loaded_and_its_configuration_read(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = CliRunner().invoke(app, ["mace", str(MODEL), "--head", "large", "--out", str(folder)])
    assert result.exit_code == 0, result.output
    assert "H, C, N, O" in " ".join(result.output.split())
    potential = load_potential(folder)
    for structure in STRUCTURES[:2]:
        assert_agrees(potential, reference("large"), structure)
    config = load_config(folder / "config.yaml", complete=True)
    assert config.model.configure() == potential.model.config
    assert config.potential.zbl
    again = CliRunner().invoke(app, ["mace", str(MODEL), "--head", "large", "--out", str(folder)])
    assert isinstance(again.exception, InputError)


def test_nothing_of_a_file_is_executed(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    torch.save(Payload(), tmp_path / "bad.model")
    with pytest.raises(InputError, match=r"bad\.model"):
        import_potential(tmp_path / "bad.model")
    assert not (tmp_path / "executed").exists()
    torch.load(tmp_path / "bad.model", weights_only=False)
    assert (tmp_path / "executed").exists()


def test_records_know_the_state_dict_of_the_file() -> None:
    state = state_of(read_records(MODEL))
    assert state["products.1.linear.weight"].shape == (16,)
    assert state["atomic_numbers"].tolist() == [1, 6, 7, 8]


@pytest.mark.parametrize(("head", "text"), [(None, "small, large"), ("larg", "did you mean large")])
def test_a_head_has_to_be_chosen(head: str | None, text: str) -> None:
    with pytest.raises(InputError, match=text):
        import_potential(MODEL, head=head)


def test_files_that_are_something_else_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.model").write_text("no model")
    torch.save({"a": torch.zeros(2)}, tmp_path / "state.model")
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "script.model")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "linear.model")
    for name, text in (
        ("missing", "no such file"),
        ("text", "not a file that torch.save wrote"),
        ("state", "holds a dict"),
        ("script", "TorchScript"),
        ("linear", "holds a Linear"),
    ):
        with pytest.raises(InputError, match=text) as error:
            import_potential(tmp_path / f"{name}.model")
        assert error.value.file is not None
        assert "\n" not in str(error.value)


def _set(path: str, value: object):
    def change(record: Record) -> None:
        parent, _, name = path.rpartition(".")
        (record[parent] if parent else record).attributes[name] = value

    return change


def _rename(path: str, name: str):
    def change(record: Record) -> None:
        record[path].qualified_name = f"mace.modules.blocks.{name}"

    return change


def _embed(specs: dict[str, object]):
    def change(record: Record) -> None:
        embedding = Record("mace.modules.embeddings.GenericJointEmbedding")
        embedding.attributes["specs"] = specs
        record.children["joint_embedding"] = embedding

    return change


def _degree_two(record: Record) -> None:
    """Features 0e and 2e, which have as many weights as 0e and 1o."""
    irreps = record["products.0.symmetric_contractions.irreps_out"].arguments[0]
    irreps[1].arguments[0][1].arguments = ((2, 1),)


def _fill(path: str, value: float):
    def change(record: Record) -> None:
        record[path].data.fill_(value)

    return change


def _replace(path: str, value: float):
    def change(record: Record) -> None:
        parent, _, name = path.rpartition(".")
        record[parent].place("_buffers")[name] = torch.full(record[path].shape, value)

    return change


def _of_kind(path: str, dtype: torch.dtype):
    def change(record: Record) -> None:
        parent, _, name = path.rpartition(".")
        place = next(place for place in ("_parameters", "_buffers") if name in record[parent].place(place))
        record[parent].place(place)[name] = record[path].to(dtype)

    return change


def _bias(path: str):
    """A layer that adds numbers, as e3nn's and torch's can."""

    def change(record: Record) -> None:
        record[path].place("_buffers").pop("bias", None)
        record[path].place("_parameters")["bias"] = torch.full((2,), 0.1)

    return change


def _put(path: str, part: Record):
    def change(record: Record) -> None:
        parent, _, name = path.rpartition(".")
        record[parent].children[name] = part

    return change


def _program(content: bytes):
    def change(record: Record) -> None:
        record["interactions.1.conv_tp"].attributes["__codegen__"]["_compiled_main_left_right"] = content

    return change


def _coupling(record: Record) -> None:
    """One of the Wigner 3j symbols that a compiled product multiplies with is another one."""
    programs = record["interactions.1.conv_tp"].attributes["__codegen__"]
    changed = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(programs["_compiled_main_left_right"])) as before,
        zipfile.ZipFile(changed, "w") as after,
    ):
        for name in before.namelist():
            content = before.read(name)
            if name.endswith("/data/0"):
                numbers = np.frombuffer(content, np.float64 if len(content) % 360 == 0 else np.float32).copy()
                numbers[np.argmax(np.abs(numbers))] *= 1.001
                content = numbers.tobytes()
            after.writestr(name, content)
    programs["_compiled_main_left_right"] = changed.getvalue()


def _reordered(path: str, *order: int):
    """The paths of a layer in another order, as a file of another program may have them."""

    def change(record: Record) -> None:
        paths = record[path].attributes["instructions"]
        record[path].attributes["instructions"] = [paths[place] for place in order]

    return change


def _path(path: str, number: int, place: int, value: object):
    """One number of an instruction is another one."""

    def change(record: Record) -> None:
        instruction = record[path]["instructions"][number]
        changed = list(instruction.arguments)
        changed[place] = value
        instruction.arguments = tuple(changed)

    return change


def _of_another_module(path: str, name: str | None = None):
    """A class of the same name that somebody else wrote."""

    def change(record: Record) -> None:
        part = record[path] if path else record
        part.qualified_name = f"elsewhere.{name or part.name}"

    return change


def _multiplicity(path: str, part: int, value: int):
    def change(record: Record) -> None:
        mul_irrep = record[path].arguments[0][part]
        mul_irrep.arguments = ((value, mul_irrep.arguments[0][1]),)

    return change


def _plain_attribute(path: str):
    """A module that Python finds under its name, and that is none of the parts."""

    def change(record: Record) -> None:
        parent, _, name = path.rpartition(".")
        record[parent].attributes[name] = record[parent].children.pop(name)

    return change


def _act(path: str, act: object = "that of the first", layer: int = -1):
    """The activation of a layer of a network of distances; the last has none."""

    def change(record: Record) -> None:
        layers = list(record[path])
        parts = layers[layer].attributes
        parts.pop("act", None)
        parts["_modules"] = {**layers[layer].children, "act": layers[0]["act"] if act else None}

    return change


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_set("use_so3", True), "use_so3"),
        (_set("edge_irreps", "64x0e"), "edge_irreps"),
        (_set("apply_cutoff", False), "apply_cutoff"),
        (_rename("interactions.1", "RealAgnosticAttResidualInteractionBlock"), "AttResidual"),
        (_rename("interactions.0", "RealAgnosticResidualNonLinearInteractionBlock"), "mixture"),
        (_embed({"total_spin": {}, "total_charge": {}}), "total_spin and total_charge .*MACE-OMOL"),
        (_rename("interactions.1", "RealAgnosticInteractionBlock"), "mixture"),
        (_rename("readouts.1", "NonLinearBiasReadoutBlock"), "NonLinearBias"),
        (_rename("radial_embedding.bessel_fn", "GaussianBasis"), "GaussianBasis"),
        (_rename("radial_embedding.distance_transform", "SoftTransform"), "SoftTransform"),
        (_fill("radial_embedding.distance_transform.a", 1.2), "AgnesiTransform"),
        (_fill("pair_repulsion_fn.a_exp", 0.23), "constants"),
        (_set("readouts.1.non_linearity.acts.0.f", Named("torch", "abs")), "activation abs"),
        (_set("readouts.1.non_linearity.acts.0.cst", 1.0), "multiplied by 1, and here by 1.679"),
        (_set("interactions.1.conv_tp_weights.layer0.act.f", Named("torch", "tanh")), "radial MLP"),
        (_fill("atomic_numbers", -1), "atomic numbers"),
        (_fill("interactions.1.linear_up.weight", float("nan")), "not finite in interactions.1.linear_up"),
        (_set("heads", [["small", "large"]]), "heads"),
        (_set("interactions.1.avg_num_neighbors", 7.0), "avg_num_neighbors"),
        (_degree_two, r"features \d+x0e\+\d+x2e"),
        (_fill("radial_embedding.bessel_fn.prefactor", 0.5), "prefactor is 0.5"),
        (_fill("radial_embedding.cutoff_fn.r_max", 3.0), "cutoff_fn.r_max is 3"),
        (_set("spherical_harmonics.normalization", "norm"), "another normalization"),
        (_set("products.1.use_sc", False), "use_sc = False"),
        (_fill("products.0.symmetric_contractions.contractions.1.U_matrix_2", 1.0), "couples"),
        (_fill("products.0.symmetric_contractions.contractions.0.U_matrix_1", 0.5), "couples"),
        (
            _of_kind("scale_shift.scale", torch.complex64),
            "numbers of the kind complex64 in scale_shift.scale",
        ),
        (_of_kind("interactions.0.linear_up.weight", torch.bool), "bool in interactions.0.linear_up.weight"),
        (_of_kind("atomic_energies_fn.atomic_energies", torch.int64), "int64 in atomic_energies_fn"),
        (lambda record: record.attributes["_modules"].pop("radial_embedding"), "laid out"),
        (_set("radial_embedding.apply_cutoff", False), "radial_embedding.apply_cutoff is False"),
        (_set("products.0.use_agnostic_product", True), "products.0.use_agnostic_product is True"),
        (_set("readouts.1.num_heads", 3), "readouts.1.num_heads is 3, and 2 here"),
        (_set("interactions.0.conv_tp_weights.layer0.h_in", 7), "layer0.h_in is 7"),
        (_set("interactions.1.conv_tp_weights.layer2.var_in", 2), "layer2.var_in is 2"),
        (_set("interactions.0.conv_tp_weights.layer1.var_out", 2.0), r"layer1.var_out is 2\.0"),
        (_set("interactions.0.conv_tp_weights.layer0.act._is_id", True), "silu is not multiplied"),
        (_set("readouts.1.non_linearity.acts.0._is_id", True), "silu is not multiplied"),
        *[
            (_bias(place), rf"computes with (biases of )?{place[:10]}")
            for place in (
                *("node_embedding.linear", "interactions.0.linear_up", "interactions.1.linear"),
                *("interactions.1.skip_tp", "products.0.linear", "readouts.0.linear", "readouts.1.linear_2"),
            )
        ],
        (_put("interactions.0.more", Record("torch.nn.Linear")), r"part interactions.0.more \(Linear\)"),
        (_rename("interactions.0.linear_up", "Other"), "a Other for interactions.0.linear_up"),
        (_act("interactions.1.conv_tp_weights"), "act = normalize2mom"),
        (_act("interactions.0.conv_tp_weights", None, 0), "activation identity"),
        (_set("interactions.1.linear_up._forward_hooks", {1: "f"}), "linear_up._forward_hooks"),
        (_set("products.0._forward_pre_hooks", {1: "f"}), "products.0._forward_pre_hooks"),
        (_set("products.0.linear.weight", torch.ones(3)), "products.0.linear.weight .*twice"),
        (_replace("interactions.0.linear_up.weight", 1.0), "interactions.0.linear_up.weight .*twice"),
        (_program(b"no archive"), "compiled part of interactions.1.conv_tp cannot be read"),
        (_coupling, r"interactions.1.conv_tp couples by other numbers .*_w3j_1_\d_\d"),
        (_set("forward", Named("os", "system")), "function of its own .*: forward"),
        (_set("radial_embedding.cutoff_fn.calculate_envelope", 1), "cutoff_fn.calculate_envelope"),
        (lambda record: record.attributes.pop("pair_repulsion"), "pair_repulsion says otherwise"),
        (_replace("radial_embedding.cutoff_fn.p", 6.5), "p is 6.5"),
        (_replace("pair_repulsion_fn.p", 5.5), "p is 5.5"),
        (
            _reordered("interactions.1.conv_tp", 1, 0, 2, 3, 4, 5, 6),
            r"interactions.1.conv_tp.instructions.0 is \(1, 1, 1",
        ),
        (_reordered("interactions.1.conv_tp", 0, 1, 2), "conv_tp has 3 paths, and 7 here"),
        (_path("interactions.0.conv_tp", 1, 5, 1.0), r"interactions.0.conv_tp.instructions.1 is .* 1\.0,"),
        (_path("interactions.1.conv_tp", 0, 3, "uvw"), "interactions.1.conv_tp.instructions.0 is .*uvw"),
        (_path("interactions.1.conv_tp", 0, 4, value=False), "conv_tp.instructions.0 is .*False"),
        (_path("interactions.1.conv_tp", 0, 6, (1, 1)), "interactions.1.conv_tp.instructions.0 is"),
        (_path("interactions.1.linear_up", 0, 3, 1.0), "interactions.1.linear_up.instructions.0 is"),
        (_path("interactions.1.skip_tp", 0, 5, 0.3), "interactions.1.skip_tp.instructions.0 is"),
        (_path("node_embedding.linear", 0, 3, float("nan")), "node_embedding.linear.instructions.0 is"),
        (_path("readouts.1.linear_2", 0, 3, 0.5), "readouts.1.linear_2.instructions.0 is"),
        (_reordered("products.0.linear", 1, 0), "products.0.linear.instructions.0 is"),
        (_multiplicity("interactions.0.linear_up.irreps_in", 0, 7), "linear_up.irreps_in is 7x0e, and"),
        (_multiplicity("interactions.1.skip_tp.irreps_in2", 0, 3), "skip_tp.irreps_in2 is 3x0e, and 4x0e"),
        (_set("interactions.0.linear.instructions", None), "no interactions.0.linear.instructions"),
        (_set("interactions.1.reshape.muls", [2, 2]), r"interactions.1.reshape.muls is \[2, 2\]"),
        *[
            (_of_another_module(path), f"for {path or 'the whole'}, .*of the class elsewhere")
            for path in (
                *("", "interactions", "interactions.1", "interactions.0.linear_up", "interactions.1.conv_tp"),
                *(
                    "interactions.1.skip_tp",
                    "interactions.0.reshape",
                    "interactions.0.conv_tp_weights.layer0",
                ),
                *("products.0", "products.1.symmetric_contractions", "readouts.1.non_linearity.acts.0"),
                *("radial_embedding.cutoff_fn", "spherical_harmonics", "scale_shift", "pair_repulsion_fn"),
            )
        ],
        (_set("readouts.1.non_linearity.acts.0.f", Named("elsewhere", "silu")), "activation elsewhere.silu"),
        (_plain_attribute("interactions.1.conv_tp"), "interactions.1.conv_tp as a plain attribute"),
        (
            _set("interactions.1.conv_tp._compiled_main_left_right", 1),
            "place of a part's: .*_compiled_main_left",
        ),
    ],
)
def test_a_variant_that_is_not_supported_is_refused(
    change, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = read_records(MODEL)
    change(record)
    monkeypatch.setattr(module, "read_records", lambda _: record)
    with pytest.raises(InputError, match=text) as error:
        import_potential(MODEL, head="small")
    assert "mace_heads.model" in str(error.value)


def _edge_channels(record: Record) -> None:
    """2x1o of what the second layer gathers, and 3x0e."""
    part = record["interactions.1.edge_irreps"].arguments[0][1]
    part.arguments = ((2, part.arguments[0][1]),)


def _spec(name: str, key: str, value: object):
    def change(record: Record) -> None:
        record["joint_embedding.specs"][name][key] = value

    return change


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        ("mh", _set("use_so3", True), "use_so3"),
        ("mh", _set("use_agnostic_product", False), "use_agnostic_product = False"),
        ("mh", _set("products.1.use_agnostic_product", False), "use_agnostic_product = False"),
        ("mh", _set("products.1.use_sc", False), "use_sc = False"),
        ("mh", _set("apply_cutoff", True), "apply_cutoff = True"),
        ("mh", _set("radial_embedding.apply_cutoff", True), "apply_cutoff = True"),
        ("mh", _rename("interactions.1", "RealAgnosticResidualInteractionBlock"), "mixture"),
        ("mh", _rename("readouts.1", "NonLinearReadoutBlock"), "NonLinearReadoutBlock after"),
        ("mh", _set("readouts.1.non_linearity.acts.0.cst", 1.0), "multiplied by 1, and here by 1.679"),
        ("mh", _set("use_last_readout_only", True), "2 readouts"),
        ("mh", _set("interactions.0.equivariant_nonlin._act_gate", Named("torch", "tanh")), "only sigmoid"),
        ("mh", _set("interactions.1.equivariant_nonlin._gate_cst", 1.0), "multiplied by 1, and here"),
        (
            "mh",
            _set("interactions.0.equivariant_nonlin._layout_is_ir_mul", True),
            "_layout_is_ir_mul is True",
        ),
        ("mh", _set("interactions.0.equivariant_nonlin._s_start", 1), "_s_start is 1"),
        ("mh", _set("interactions.1.equivariant_nonlin._g_start", 5), "_g_start is 5"),
        ("mh", _set("interactions.1.equivariant_nonlin._s_len", 3), "_s_len is 3"),
        ("mh", _set("interactions.1.equivariant_nonlin._g_len", 8), "_g_len is 8"),
        ("mh", _set("interactions.1.equivariant_nonlin._gated_info", [(0, 12, 3, 4, 0)]), "_gated_info is"),
        ("omol", _set("readouts.0.num_heads", 2), "num_heads is 2"),
        ("mh", _edge_channels, r"edge_irreps 3x0e\+2x1o"),
        ("mh", _set("interactions.1.conv_tp_weights.net.1.eps", 1e-3), "eps = 0.001"),
        ("mh", _rename("interactions.1.conv_tp_weights.net.2", "GELU"), "Linear, LayerNorm, GELU"),
        ("mh", _fill("interactions.1.linear_res.weight", float("nan")), "not finite"),
        ("omol", _spec("total_charge", "type", "continuous"), "total_charge as continuous"),
        ("omol", _spec("total_charge", "offset", 3), "9 charges from -3"),
        ("omol", _spec("total_spin", "offset", 7), "multiplicities with the offset 7"),
        ("omol", _spec("total_spin", "num_classes", 5000), "embedders.total_spin.weight has 21"),
        ("omol", _embed({"temperature": {}, "total_charge": {}}), "embeds temperature and total_charge"),
        ("omol", _rename("embedding_readout", "NonLinearReadoutBlock"), "the embedding readout NonLinear"),
        ("omol", _fill("scale_shift.scale", 0.0), "scale 0"),
        *[
            ("omol", _bias(place), f"computes with {place}.bias")
            for place in (
                *(f"interactions.1.{name}" for name in ("linear_1", "linear_2", "linear_res", "skip_tp")),
                *(f"interactions.0.{name}_embedding" for name in ("source", "target")),
                *("embedding_readout.linear", "joint_embedding.project.0", "readouts.0.linear_1"),
            )
        ],
        ("omol", _rename("joint_embedding.project.1", "Tanh"), "Tanh for joint_embedding.project.1"),
        ("omol", _put("joint_embedding.project.2", Record("torch.nn.SiLU")), "joint_embedding.project.2"),
        ("omol", _set("joint_embedding.embedders.total_charge.max_norm", 0.3), "max_norm is 0.3"),
        ("omol", _rename("interactions.0.density_fn.net.2", "Tanh"), "Linear, LayerNorm, Tanh"),
        ("mh", _set("interactions.0.density_fn.net.1.eps", 1e-3), "eps = 0.001"),
        *[
            ("omol", _path(f"interactions.1.{name}", 0, 3, 0.25), f"interactions.1.{name}.instructions.0 is")
            for name in ("linear_1", "linear_2", "linear_res", "skip_tp", "source_embedding", "linear_up")
        ],
        ("omol", _reordered("interactions.1.conv_tp", *range(10, -1, -1)), "conv_tp.instructions.0 is"),
        ("omol", _path("readouts.0.linear_mid", 1, 3, 2.0), r"readouts.0.linear_mid.instructions.1 is \(-1"),
        ("omol", _path("embedding_readout.linear", 0, 3, 1.0), "embedding_readout.linear.instructions.0 is"),
        ("omol", _of_another_module("interactions.0.equivariant_nonlin"), "of the class elsewhere"),
        ("omol", _of_another_module("joint_embedding.project.1"), "of the class elsewhere.SiLU"),
        ("omol", _of_another_module("interactions.0.density_fn.net.1"), "of the class elsewhere.LayerNorm"),
        (
            "omol",
            _set("interactions.1.equivariant_nonlin._act_gate", Named("elsewhere", "sigmoid")),
            "activation elsewhere.sigmoid",
        ),
    ],
)
def test_a_variant_of_nonlinear_interactions_that_is_not_supported_is_refused(
    name: str, change, text: str, unpacked_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = read_records(unpacked_files[name])
    change(record)
    monkeypatch.setattr(module, "read_records", lambda _: record)
    with pytest.raises(InputError, match=text) as error:
        import_potential(unpacked_files[name], head="omol")
    assert f"mace_layout_{name}.model" in str(error.value)


def _gate_of_e3nn(channels: int, l_max: int, folder: Path) -> Record:
    """What stood in these layers before mace-torch had a gate of its own."""
    gated = o3.Irreps([(channels, (degree, (-1) ** degree)) for degree in range(1, l_max + 1)])
    gate = Gate(
        irreps_scalars=f"{channels}x0e",
        act_scalars=[torch.nn.functional.silu],
        irreps_gates=o3.Irreps([(channels, (0, 1))] * l_max),
        act_gates=[torch.nn.functional.sigmoid] * l_max,
        irreps_gated=gated,
    )
    torch.save(gate, folder / "gate.model")
    return read_records(folder / "gate.model")


@pytest.fixture(scope="module")
def gates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of a model with e3nn's gates."""
    return tmp_path_factory.mktemp("gates")


def _with_gates(file: Path, folder: Path) -> Record:
    record = read_records(file)
    for n, layer in enumerate(record["interactions"]):
        channels = layer["equivariant_nonlin._s_len"]
        l_max = len(layer["equivariant_nonlin._gated_info"])
        record[f"interactions.{n}"].children["equivariant_nonlin"] = _gate_of_e3nn(channels, l_max, folder)
    return record


def test_a_file_with_gates_of_e3nn_computes_the_same(
    unpacked_files: dict[str, Path], gates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = _with_gates(unpacked_files["omol"], gates)
    monkeypatch.setattr(module, "read_records", lambda _: record)
    potential = import_potential(unpacked_files["omol"])
    assert_agrees(potential, case("mace_layout_omol", 0), "crystal", electrons=(0, 1))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_path("interactions.1.equivariant_nonlin.mul", 1, 5, 1.0), "nonlin.mul.instructions.1 is"),
        (_reordered("interactions.0.equivariant_nonlin.mul", 1, 0), "nonlin.mul.instructions.0 is"),
        (
            _set("interactions.0.equivariant_nonlin.sc.cut.instructions", [(1,), (0,), (2, 3)]),
            "cut.instructions is",
        ),
        (_of_another_module("interactions.0.equivariant_nonlin.sc"), "of the class elsewhere._Sortcut"),
        (
            _set("interactions.0.equivariant_nonlin.act_gates.acts.1.f", Named("torch", "tanh")),
            "act_gates has activations that differ",
        ),
    ],
)
def test_a_gate_of_e3nn_that_computes_something_else_is_refused(
    change, text: str, unpacked_files: dict[str, Path], gates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = _with_gates(unpacked_files["omol"], gates)
    change(record)
    monkeypatch.setattr(module, "read_records", lambda _: record)
    with pytest.raises(InputError, match=text):
        import_potential(unpacked_files["omol"])


def test_a_file_of_mace_omol_becomes_a_run(unpacked_files: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = CliRunner().invoke(app, ["mace", str(unpacked_files["omol"]), "--out", str(folder)])
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "mace-nonlinear" in said
    assert "charge" in said
    assert "-4 to 4" in said
    reference = case("mace_layout_omol", 1)
    assert_agrees(load_potential(folder), reference, "acetamide", electrons=(-2, 3))
    config = load_config(folder / "config.yaml", complete=True)
    assert config.model.configure().max_multiplicity == 6


def test_bessel_frequencies_that_were_trained_are_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    record = read_records(MODEL)
    record["radial_embedding.bessel_fn.bessel_weights"].mul_(1.01)
    monkeypatch.setattr(module, "read_records", lambda _: record)
    potential = import_potential(MODEL, head="small")
    frequencies = potential.model.edges.basis.frequencies
    assert isinstance(frequencies, torch.nn.Parameter)
    expected = 1.01 * torch.pi * torch.arange(1, 7, dtype=torch.float64)
    torch.testing.assert_close(frequencies.detach(), expected, rtol=1e-12, atol=0)
