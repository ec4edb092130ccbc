"""What a user gets wrong ends in one line with the reason, never in silence."""

from __future__ import annotations

import os
import shutil
import time
import zipfile

import numpy as np
import pytest
from toys import SPECIES, geometries, potential_of, with_entry, with_metadata

from pimlip_zoo.deploy.aot import export_aot
from pimlip_zoo.deploy.lammps.check import single_points
from pimlip_zoo.deploy.lammps.input import write_data
from pimlip_zoo.deploy.lammps.run import run_lammps
from pimlip_zoo.deploy.loading import load_exported
from pimlip_zoo.deploy.metadata import read_metadata
from pimlip_zoo.deploy.native.archive import read_native, source_entry, source_hash
from pimlip_zoo.deploy.native.library import _LEVELS, machine_level
from pimlip_zoo.errors import InputError
from pimlip_zoo.files import sealed


def attempt(model, plugin, **settings):
    atoms = geometries()["a skewed triclinic cell"]
    return single_points([atoms], model=model, plugin=plugin, species=SPECIES, **settings)


BOTH = pytest.mark.parametrize(
    ("name", "file_format"), [("pairs", "torchscript"), ("nequip", "native")], indirect=["file_format"]
)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pimlip_format": None}, "has no metadata of pimlip-zoo"),
        ({"pimlip_format": "7"}, "its format is version 7 and this pair style reads version 1"),
        ({"r_max": None}, "its metadata lack r_max"),
        ({"interaction_depth": "many"}, "its metadata are damaged"),
        ({"units": "kcal/mol"}, "its units are kcal/mol"),
    ],
)
@BOTH
def test_metadata_that_do_not_fit(name, changes, reason, tmp_path, plugin, exported):
    source = exported(name)
    model = with_metadata(source, tmp_path / source.name, **changes)
    with pytest.raises(InputError, match=reason):
        attempt(model, plugin)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    path = tmp_path_factory.mktemp("compiled") / "pairs.pimlip.pt2"
    return export_aot(potential_of("pairs"), path, name="pairs").path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "lammps_says", "python_says"),
    [
        (
            {"torch_version": "2.5.1"},
            "compiled with torch 2.5.1 and this is torch",
            "compiled with torch 2.5.1",
        ),
        ({"pimlip_format": "7"}, "its format is version 7", "its format is version 7"),
        ({"pimlip_format": None}, "no metadata of pimlip-zoo", "no metadata of pimlip-zoo"),
        ({"r_max": None}, "its metadata lack r_max", "its metadata lack r_max"),
    ],
)
def test_compiled_files_that_do_not_fit(changes, lammps_says, python_says, tmp_path, plugin, compiled):
    model = with_metadata(compiled, tmp_path / compiled.name, **changes)
    with pytest.raises(InputError, match=lammps_says):
        attempt(model, plugin)
    with pytest.raises(InputError, match=python_says):
        load_exported(model)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("run", "it is a folder"), ("run.pimlip", "it is a folder"), ("best.ckpt", "it is a checkpoint")],
)
@pytest.mark.parametrize("file_format", ["torchscript", "native"], indirect=True)
def test_runs_and_checkpoints_are_not_exported_files(name, reason, tmp_path, plugin):
    (tmp_path / "run").mkdir()
    (tmp_path / "run.pimlip").mkdir()
    (tmp_path / "best.ckpt").write_text("weights")
    with pytest.raises(InputError, match=f"{reason}.*pimlip-zoo export"):
        attempt(tmp_path / name, plugin)


@BOTH
def test_an_unchanged_copy_loads(name, tmp_path, plugin, exported):
    model = with_metadata(exported(name), tmp_path / exported(name).name)
    assert read_metadata(model) == read_metadata(exported(name))
    assert np.isfinite(attempt(model, plugin)[0].energy)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
@BOTH
def test_a_truncated_file(name, share, tmp_path, plugin, exported):
    content = exported(name).read_bytes()
    model = tmp_path / exported(name).name
    model.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=r"not a complete (TorchScript file|native model)"):
        attempt(model, plugin)
    with pytest.raises(InputError, match="not a complete exported model"):
        read_metadata(model)


def test_a_file_of_a_torch_that_cannot_be_read_names_both_versions(tmp_path, plugin, exported):
    # Operators of another torch, as far as this one can tell.
    source = exported("pairs")
    model = tmp_path / "future.nequip.pth"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(model, "w", zipfile.ZIP_STORED) as new:
        for item in old.infolist():
            content = old.read(item.filename)
            if item.filename.endswith(".py"):
                content = content.replace(b"torch.index_add(", b"torch.index_add_next(")
            if item.filename.endswith("/extra/torch_version"):
                content = b"9.1.0"
            new.writestr(item, content)
    with pytest.raises(InputError, match=r"written by torch 9.1.0 and torch .* cannot load it"):
        attempt(model, plugin)
    with pytest.raises(InputError, match=r"written by torch 9.1.0, which this torch .* cannot load"):
        load_exported(model)


@pytest.mark.parametrize(
    ("entry", "change", "reason"),
    [
        ("weights.bin", None, "it is not a native model"),
        ("model-64.c", None, "it is not a native model"),
        ("weights.bin", lambda content: content[:-64], "its weights are not complete"),
        ("extra/model-64.c", lambda content: b"../../" + content[6:], "it is not a native model"),
    ],
)
@pytest.mark.parametrize("file_format", ["native"], indirect=True)
def test_native_files_with_other_entries(entry, change, reason, tmp_path, plugin, exported):
    entry = entry.replace("64", str(_LEVELS[machine_level()][0]))  # of this processor
    model = with_entry(exported("nequip"), tmp_path / "changed.pimlip", f"pimlip/{entry}", change)
    with pytest.raises(InputError, match=reason):
        attempt(model, plugin)


@pytest.mark.parametrize("file_format", ["native"], indirect=True)
def test_a_native_file_with_one_wrong_bit(tmp_path, plugin, exported):
    content = bytearray(exported("nequip").read_bytes())
    content[len(content) // 2] ^= 4
    model = tmp_path / "model.pimlip"
    model.write_bytes(content)
    with pytest.raises(InputError, match="not a complete native model"):
        attempt(model, plugin)
    with pytest.raises(InputError, match="not a complete exported model"):
        load_exported(model)


def one_wrong_bit(source, entry, model):
    """A copy of an archive, one of whose entries has one wrong bit, in the middle of its bytes."""
    content = bytearray(source.read_bytes())
    with zipfile.ZipFile(source) as archive:
        info = next(info for info in archive.infolist() if info.filename.endswith(entry))
    name, extra = (int.from_bytes(content[info.header_offset + at :][:2], "little") for at in (26, 28))
    content[info.header_offset + 30 + name + extra + info.compress_size // 2] ^= 1
    model.write_bytes(content)
    return model


@pytest.mark.parametrize("kind", ["data", "data.pkl", "extra", "code"])
def test_a_torchscript_file_with_one_wrong_bit(kind, tmp_path, plugin, exported):
    with zipfile.ZipFile(exported("pairs")) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
    found = [name for name in sizes if f"/{kind}" in name and not name.endswith("debug_pkl")]
    entry = max(found, key=sizes.__getitem__)
    model = one_wrong_bit(exported("pairs"), entry, tmp_path / "model.nequip.pth")
    with pytest.raises(InputError, match=r"it is not a complete TorchScript file: .*export it again"):
        attempt(model, plugin)
    with pytest.raises(InputError, match="not a complete exported model"):
        read_metadata(model)


@pytest.mark.slow
def test_a_compiled_file_with_one_wrong_bit(tmp_path, plugin, compiled):
    with zipfile.ZipFile(compiled) as archive:
        for ending in (".so", "_metadata.json"):
            entry = next(name for name in archive.namelist() if name.endswith(ending))
            model = one_wrong_bit(compiled, entry, tmp_path / "model.pimlip.pt2")
            with pytest.raises(
                InputError, match=r"not a complete compiled model: the checksum of .* does not fit"
            ):
                attempt(model, plugin)


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """Where nothing has been compiled yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "the cache"))
    return tmp_path / "the cache" / "pimlip-zoo" / "kernels"


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        ("no-such-compiler", "there is no C compiler no-such-compiler, .*install gcc or set CC"),
        ("false", "the C compiler false failed"),
        ("gcc -no-such", "the C compiler gcc -no-such failed: .*error: unrecognized"),
    ],
)
@pytest.mark.parametrize("file_format", ["native"], indirect=True)
def test_native_files_without_a_compiler(compiler, reason, ranks, plugin, exported, empty_cache, monkeypatch):
    if compiler.startswith("gcc") and shutil.which("gcc") is None:
        pytest.skip("there is no gcc")
    model = exported("nequip")
    monkeypatch.setenv("CC", compiler)
    with pytest.raises(InputError, match=reason):
        attempt(model, plugin, ranks=ranks)
    assert not list(empty_cache.glob("*.so"))


@pytest.mark.parametrize("file_format", ["native"], indirect=True)
def test_native_code_is_for_this_processor_and_in_the_cache_of_python(plugin, exported, empty_cache):
    model = exported("nequip")
    attempt(model, plugin)
    (library,) = empty_cache.glob("*.so")
    entry = source_entry(_LEVELS[machine_level()][0])
    assert library.name == f"native-{read_metadata(model)[entry][:32]}-{machine_level()}.so"
    assert source_hash(read_native(model).sources[_LEVELS[machine_level()][0]]) == read_metadata(model)[entry]
    content, seal = library.read_bytes(), library.with_name(library.name + ".sha256")
    assert sealed(library)
    left = [library.with_name(f"{library.name}.99999.{ending}") for ending in ("c", "tmp", "log")]
    for path in left:
        path.write_text("of a compiler that was killed")
    damaged = [content[:100], content[:9000] + bytes([content[9000] ^ 4]) + content[9001:]]
    for other in damaged:  # mapped, it would end LAMMPS with SIGBUS, or compute something else
        library.write_bytes(other)
        attempt(model, plugin)
        assert library.read_bytes() != other
        assert sealed(library)
    assert not any(path.exists() for path in left)
    made = library.stat().st_ino
    library.chmod(0o777)  # who could have written it?
    empty_cache.chmod(0o777)
    attempt(model, plugin)
    assert library.stat().st_ino != made
    assert not (library.stat().st_mode | empty_cache.stat().st_mode) & 0o022
    seal.unlink()
    attempt(model, plugin)
    assert sealed(library)


@pytest.mark.parametrize("file_format", ["native"], indirect=True)
def test_a_cache_that_is_emptied_during_a_run_changes_nothing(
    plugin, exported, empty_cache, tmp_path, monkeypatch
):
    model = exported("nequip")
    atoms = geometries()["a skewed triclinic cell"]
    expected = attempt(model, plugin)[0].energy
    (library,) = empty_cache.glob("native-*.so")
    write_data(tmp_path / "structure.data", atoms, SPECIES)
    (tmp_path / "library").symlink_to(library)  # a path without spaces
    for name, age in (("killed", 2 * 86400), ("at work", 60)):
        (empty_cache / f".load-{name}").mkdir()
        os.utime(empty_cache / f".load-{name}", times=(time.time() - age,) * 2)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "of another node"))
    (tmp_path / "in.lammps").write_text(
        f"units metal\nplugin load {plugin}\nread_data structure.data\npair_style pimlip\n"
        f"pair_coeff * * {model} H C O\nrun 0\nshell truncate -s 0 library\nrun 0\n"
        'print "$(pe:%.17g)" file energy.txt\n'
    )
    run_lammps(tmp_path / "in.lammps")  # mapped, the library would end it with SIGBUS
    assert library.stat().st_size == 0
    assert float((tmp_path / "energy.txt").read_text()) == pytest.approx(expected, abs=1e-10)
    assert [path.name for path in empty_cache.iterdir() if path.name.startswith(".load")] == [".load-at work"]


@pytest.mark.parametrize(
    ("entry", "change"),
    [("model-64.c", lambda content: content + b"\n"), ("extra/model-64.c", lambda _: b"0" * 64)],
)
@pytest.mark.parametrize("file_format", ["native"], indirect=True)
def test_code_is_not_kept_under_the_hash_of_other_code(
    entry, change, tmp_path, plugin, exported, empty_cache
):
    entry = entry.replace("64", str(_LEVELS[machine_level()][0]))  # of this processor
    model = with_entry(exported("nequip"), tmp_path / "changed.pimlip", f"pimlip/{entry}", change)
    with pytest.raises(InputError, match=r"the hash of model-\d+.c is not that of its text"):
        attempt(model, plugin)
    with pytest.raises(InputError, match=r"the hash of model-\d+.c is not that of its text"):
        load_exported(model)
    assert not list(empty_cache.glob("native-*"))


@pytest.mark.parametrize("file_format", ["native"], indirect=True)
def test_other_formats_and_gpus_are_refused_where_there_is_no_torch(tmp_path, plugin, exported):
    with pytest.raises(InputError, match=r"device cuda was asked for, and native models run on CPUs"):
        attempt(exported("nequip"), plugin, options="device cuda")
    other = tmp_path / "model.nequip.pth"
    other.write_bytes(exported("nequip").read_bytes())
    with pytest.raises(InputError, match=r"built without torch and reads native models"):
        attempt(other, plugin)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", ["nowhere.nequip.pth", "nowhere.pimlip"])
@pytest.mark.parametrize("file_format", ["torchscript", "native"], indirect=True)
def test_a_missing_file(name, ranks, tmp_path, plugin):
    with pytest.raises(InputError, match="cannot be read"):
        attempt(tmp_path / name, plugin, ranks=ranks)


SCRIPT = """units {units}
atom_style {atom_style}
plugin load {plugin}
{box}
pair_style pimlip {options}
pair_coeff {coeff}
{after}
run 0
"""


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"units": "lj"}, "units are lj, use metal or real"),
        ({"coeff": "* * {model} H C Xx"}, "atom type 3 is Xx, which .* does not know .it knows: H C O"),
        ({"coeff": "* * {model} H C"}, "names 2 elements, but there are 3 atom types"),
        ({"coeff": "1 2 {model} H C O"}, r"must start with \* \*"),
        ({"options": "chunk -3"}, "chunk must be 0"),
        ({"options": "chunk"}, "chunk"),
        ({"options": "speed high"}, "unknown option speed"),
        ({"options": "device gpu"}, "device is auto, cpu or cuda, not gpu"),
        (
            {
                "after": "compute s all stress/atom NULL\ncompute r all reduce sum c_s[1]\nthermo_style custom c_r"
            },
            "compute stress/atom halves virials .*use compute centroid/stress/atom",
        ),
        (
            {
                "after": "compute k all ke/atom\ncompute p all pe/atom\ncompute s all stress/atom NULL virial\n"
                "compute j all heat/flux k p s\nthermo_style custom c_j[1]"
            },
            "wrong for many-body energies and their heat flux",
        ),
        ({"after": "compute h all heat/flux/tally all"}, "does not feed compute heat/flux/tally"),
        (
            {"coeff": "* * {model} H C NULL"},
            "does not set atom types 1 and 3|not all pair coeffs|coeffs are not set",
        ),
    ],
)
@BOTH
def test_input_scripts_that_cannot_work(name, changes, reason, tmp_path, plugin, exported):
    write_data(tmp_path / "structure.data", geometries()["a skewed triclinic cell"], SPECIES)
    pieces = {
        "units": "metal",
        "atom_style": "atomic",
        "box": "read_data structure.data",
        "options": "",
        "coeff": "* * {model} H C O",
        "after": "",
    } | changes
    pieces["coeff"] = pieces["coeff"].format(model=exported(name))
    script = tmp_path / "in.lammps"
    script.write_text(SCRIPT.format(plugin=plugin, **pieces))
    with pytest.raises(InputError, match=f"(?i){reason}"):
        run_lammps(script)


def test_bonded_neighbours_must_not_be_left_out(tmp_path, plugin, exported):
    box = "region box block 0 9 0 9 0 9\ncreate_box 1 box bond/types 1 extra/bond/per/atom 2 extra/special/per/atom 4\n"
    box += "create_atoms 1 single 1 1 1\ncreate_atoms 1 single 2 1 1\nmass 1 1.0\nbond_style zero\nbond_coeff 1 1.0\n"
    box += "create_bonds single/bond 1 1 2"
    pieces = {"units": "metal", "atom_style": "bond", "box": box, "options": ""}
    script = tmp_path / "in.lammps"
    coeff = f"* * {exported('pairs')} H"
    script.write_text(SCRIPT.format(plugin=plugin, coeff=coeff, after="", **pieces))
    with pytest.raises(InputError, match=r"add `special_bonds lj/coul 1.0 1.0 1.0`"):
        run_lammps(script)
    after = "special_bonds lj/coul 1.0 1.0 1.0"
    script.write_text(SCRIPT.format(plugin=plugin, coeff=coeff, after=after, **pieces))
    assert "Loop time" in run_lammps(script)


def test_direct_forces_have_no_virials_of_atoms(plugin, exported):
    with pytest.raises(InputError, match="no virials of atoms: export a model with conservative forces"):
        attempt(exported("nequip:direct"), plugin, atomic_virials=True)


def test_an_element_that_the_model_lacks_is_named_before_lammps_starts(plugin, exported):
    from ase import Atoms

    with pytest.raises(InputError, match="does not know Xe"):
        single_points(
            [Atoms("Xe", positions=[[1, 1, 1]], cell=[9, 9, 9], pbc=True)],
            model=exported("pairs"),
            plugin=plugin,
            species=SPECIES,
        )
