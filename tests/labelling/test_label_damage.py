"""Journals, manifests and outputs that are damaged or of other structures: said, and never a label."""

import bz2
import gzip
import json
import lzma
import os
import shutil

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write

from pimlip_zoo.errors import InputError
from pimlip_zoo.labelling.cluster import read_folders, write_folders
from pimlip_zoo.labelling.convergence import check_converged
from pimlip_zoo.labelling.evaluate import plain_result
from pimlip_zoo.labelling.failures import CalculationError
from pimlip_zoo.labelling.journal import Journal, journal_path
from pimlip_zoo.labelling.label import label
from pimlip_zoo.labelling.structures import load_structures

ODD = [None, True, -1, 1e300, float("nan"), "x", "10", [], [1, 2], {}, {"a": 1}, [[1, 2], [3]], 10**400]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """Folders of a molecule and a crystal; the first has been computed."""
    folder = tmp_path_factory.mktemp("jobs")
    write(folder / "some.extxyz", [molecule("CO"), bulk("Cu", cubic=True)])
    structures = load_structures(str(folder / "some.extxyz"))
    write_folders(structures, folder / "jobs", "emt")
    manifest = json.loads((folder / "jobs" / "manifest.json").read_text())
    about = {"name": "emt", "version": manifest["calculator_version"], "level": manifest["level"]}
    journal = Journal(journal_path(folder / "jobs" / "00000" / "result.extxyz"), about)
    journal.add(manifest["keys"][0], {"result": {"energy": -1.25, "forces": [[0.5, 0, 0], [-0.5, 0, 0]]}})
    return folder


@pytest.fixture
def here(jobs, tmp_path):
    shutil.copytree(jobs, tmp_path, dirs_exist_ok=True)
    return tmp_path


def collected(here, **options):
    structures = load_structures(str(here / "some.extxyz"))
    return read_folders(structures, here / "jobs", here / "labels.extxyz", "emt", overwrite=True, **options)


def test_the_folders_are_read(here):
    assert collected(here).labelled == 1
    assert read(here / "labels.extxyz").get_potential_energy() == -1.25


def test_a_journal_of_a_job_that_is_damaged_is_a_failure_of_its_structure_alone(here, record_property):
    journal = here / "jobs" / "00000" / "result.extxyz.journal"
    intact = journal.read_text()
    head, line = intact.splitlines()
    entry = json.loads(line)
    result = entry["result"]
    changed = [
        *({**entry, "result": odd} for odd in ODD),
        *({**entry, "result": {**result, name: odd}} for name in result for odd in ODD),
        *({key: value for key, value in entry.items() if key != name} for name in ("key", "result")),
    ]
    texts = [f"{head}\n{json.dumps(item)}\n" for item in changed]
    unsigned = [{key: value for key, value in item.items() if key != "crc32"} for item in changed]
    valid = [result, {**result, "energy": -1}, {**result, "energy": 1e300}, {**result, "forces": None}]
    texts += [f"{head}\n{json.dumps(item)}\n" for item in unsigned if item.get("result") not in valid]
    texts += [intact.replace("-1.25", "-1.35"), intact.replace("EMT", "PBE"), f"{head}\n[1]\n", "{}\n", "x\n"]
    texts += [f"{json.dumps({**json.loads(head), 'calculator': odd})}\n{line}\n" for odd in ODD]
    for text in texts:
        journal.write_text(text)
        found = collected(here)
        assert found.labelled == 0, text
        assert len(found.failures) == 2
        assert "\n" not in found.failures[0].reason
    record_property("tried", len(texts))
    journal.write_text(intact)
    assert collected(here).labelled == 1  # what failed before is looked at again


def test_a_journal_of_labels_in_which_a_digit_changed_is_refused(here):
    structures = load_structures(str(here / "some.extxyz@:1"))
    out = here / "labels.extxyz"
    label(structures, out, "emt", compare=False)
    journal = journal_path(out)
    intact = journal.read_text()
    digit = json.loads(intact.splitlines()[1])["result"]["forces"][0][2]
    before = {path: path.read_bytes() for path in here.iterdir() if path.is_file()}
    for text in (intact.replace(str(digit), str(digit + 1)), intact.replace('"energy"', '"enegry"')):
        journal.write_text(text)
        with pytest.raises(InputError, match=r"labels\.extxyz\.journal.*is damaged"):
            label(structures, out, "emt", compare=False)
    journal.write_text(intact)
    assert {path: path.read_bytes() for path in before} == before


def test_results_of_a_journal_without_checksums_have_to_fit_their_structures(here):
    structures = load_structures(str(here / "some.extxyz@:1"))
    out = here / "old.extxyz"
    label(structures, out, "emt", compare=False)
    head, line = journal_path(out).read_text().splitlines()
    entry = json.loads(line)
    del entry["crc32"]  # as before there were any
    journal_path(out).write_text(f"{head}\n{json.dumps(entry)}\n")
    assert label(structures, out, "emt", compare=False).computed == 0
    for odd in ODD:
        for result in (odd, {**entry["result"], "energy": odd}, {"energy": 1.0, "parts": odd}):
            if result in ({"energy": 1.0, "parts": odd} for odd in (None, [], {}, {"a": 1})):
                continue
            journal_path(out).write_text(f"{head}\n{json.dumps({**entry, 'result': result})}\n")
            if result == {**entry["result"], "energy": -1} or result == {**entry["result"], "energy": 1e300}:
                continue  # they are energies
            with pytest.raises(InputError, match="is damaged"):
                label(structures, out, "emt", compare=False)


@pytest.mark.parametrize("odd", [*ODD, ["x", 3], [["x"]]])
def test_a_manifest_with_odd_keys_is_refused_or_names_no_structure(odd, here):
    path = here / "jobs" / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "keys": odd}))
    try:
        assert collected(here).labelled == 0
    except InputError as error:
        assert "is damaged" in str(error)  # noqa: PT017
    assert not (here / "labels.extxyz").exists()


def moved(atoms):
    atoms.positions[0, 0] += 0.3


def exchanged(atoms):
    atoms.positions[[0, 1]] = atoms.positions[[1, 0]] + [[0.05, 0, 0], [0, 0, 0]]


def strained(atoms):
    atoms.set_cell(1.03 * atoms.cell, scale_atoms=True)


def in_a_larger_cell(atoms):
    atoms.set_cell(1.03 * atoms.cell)


def without_a_cell(atoms):
    atoms.set_cell(None)
    atoms.pbc = False


def put_back(atoms):
    atoms.positions[1] += atoms.cell[0] - 2 * atoms.cell[2]


def shifted(atoms):
    atoms.positions += [1.1, 0.2, -4.0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (moved, "differs by"),
        (exchanged, "differs by"),
        (strained, "differs by"),
        (in_a_larger_cell, "differs by"),
        (without_a_cell, "is not periodic"),
        (put_back, None),
        (shifted, None),
    ],
)
def test_an_output_of_another_crystal_is_no_label(change, says, here):
    image = read(here / "some.extxyz", 1)
    change(image)
    image.calc = SinglePointCalculator(image, energy=-99.0, forces=np.zeros((4, 3)))
    write(here / "jobs" / "00001" / "out.extxyz", image)
    found = collected(here, output_file="out.extxyz")
    reasons = [failure.reason for failure in found.failures]
    assert reasons == [] if says is None else len(reasons) == 1 and says in reasons[0]


def test_an_output_that_is_a_pipe_is_a_failure_at_once(here):
    os.mkfifo(here / "jobs" / "00001" / "out.extxyz")
    assert "not a file" in collected(here, output_file="out.extxyz").failures[0].reason


@pytest.mark.parametrize("odd", [True, "10", 10**400, [1.0, 2.0]])
def test_what_only_looks_like_an_energy_is_none(odd):
    with pytest.raises(CalculationError, match="energy"):
        plain_result({"energy": odd}, 2)


def vasprun(*energies, limit=3):
    steps = "".join(
        f'<scstep><energy><i name="alphaZ"> 1.0</i><i name="e_fr_energy"> {energy} </i></energy></scstep>'
        for energy in energies
    )
    return (
        '<modeling><generator><i name="program" type="string">vasp </i></generator>'
        f'<i name="EDIFF"> 0.00001000</i><i type="int" name="NELM"> {limit}</i>'
        f"<calculation><scstep></scstep></calculation><calculation>{steps}<energy></energy></calculation>"
        "</modeling>"
    ).encode()


def converged(content):
    try:
        check_converged(content)
    except CalculationError:
        return False
    return True


def test_a_vasprun_whose_last_step_changed_the_energy_is_not_converged():
    assert converged(vasprun(-9.0, -9.5, -9.500001))
    assert converged(vasprun(-9.5, -9.500001, limit=60))
    assert not converged(vasprun(-9.0, -9.5, limit=60)), "told to stop"
    assert not converged(vasprun(-9.0, -9.5, -9.6))
    assert not converged(vasprun(-9.5, limit=1))
    assert not converged(vasprun("-0.1E+02", "-0.2E+02", "********"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"', "'"),
        ("<scstep>", "<scstep >"),
        ("<generator>", f"<!--{'x' * 11_000}--><generator>"),
        ("</modeling>", "<calculation><time/></calculation></modeling>"),
        ("</modeling>", "<calculation ></calculation></modeling>"),
        ("</modeling>", "<!--<calculation>--></modeling>"),
        ("</modeling>", ""),
        ("</modeling>", "<calculation><scstep>"),
        ("<modeling>", '<!DOCTYPE modeling [<!ENTITY nelm "60">]><modeling>'),
        ('<i name="EDIFF"> 0.00001000</i>', ""),
    ],
)
def test_a_vasprun_written_in_another_way_is_not_converged_either(old, new):
    assert not converged(vasprun(-9.0, -9.5, -9.6).replace(old.encode(), new.encode()))


@pytest.mark.parametrize(
    "content",
    [
        vasprun(-9.0, -9.500001, -9.5).decode().encode("utf-16-le"),
        vasprun(-9.0, -9.5, -9.6).replace(b"modeling", b"other"),
        b"",
    ],
)
def test_what_has_the_name_of_a_vasprun_is_looked_at_as_one(content, here):
    (here / "jobs" / "00001" / "vasprun.xml").write_bytes(content)
    (failure,) = collected(here, output_file="vasprun.xml").failures
    assert "xml" in failure.reason or "converge" in failure.reason


ENDS = {
    "ORCA": (
        "* O   R   C   A *\n",
        "SCF ITERATIONS\n",
        "SCF CONVERGED AFTER  9 CYCLES\n",
        "SCF NOT CONVERGED AFTER 125 CYCLES\n",
    ),
    "CP2K": (
        "CP2K| version string\n",
        "SCF WAVEFUNCTION OPTIMIZATION\n",
        "*** SCF run converged in 9 steps ***\n",
        "*** SCF run NOT converged ***\n",
    ),
    "VASP": (
        " vasp.6.4.2\n",
        "--- Iteration   2(   1) ---\n",
        "aborting loop because EDIFF is reached\n",
        "aborting loop EDIFF was not reached (unconverged)\n",
    ),
    "Quantum ESPRESSO": (
        "Program PWSCF v.7.2\n",
        "Self-consistent Calculation\n",
        "convergence has been achieved in 9 iterations\n",
        "convergence NOT achieved after 100 iterations: stopping\n",
    ),
    "FHI-aims": (
        "Invoking FHI-aims ...\n",
        "Begin self-consistency loop: Re-initialization.\n",
        "Self-consistency cycle converged.\n",
        "WARNING! SELF-CONSISTENCY CYCLE DID NOT CONVERGE\n",
    ),
}


@pytest.mark.parametrize("program", ENDS)
def test_only_the_last_scf_of_an_output_counts(program):
    begin, start, reached, failed = (line.encode() for line in ENDS[program])
    assert converged(begin + start + reached)
    assert converged(begin + start + failed + start + reached)
    for end in (start, start + failed, start + failed + reached + failed, start + reached + start):
        assert not converged(begin + end)
    assert not converged(begin + start + reached + begin + start + failed)


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz"])
def test_an_output_that_did_not_converge_is_a_failure_when_it_is_compressed_too(ending, here):
    compress = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[ending]
    place = here / "jobs" / "00001" / f"vasprun.xml{ending}"
    for content, says in (
        (compress(vasprun(-9.0, -9.5, -9.6)), "did not converge"),
        (compress(bytes(1 << 26)), "unpacks to more than"),
        (compress(vasprun(-9.0))[:-9], "cannot be unpacked"),
    ):
        place.write_bytes(content)
        (failure,) = collected(here, output_file=place.name).failures
        assert says in failure.reason


def test_a_journal_that_does_not_say_its_level_or_a_checksum_any_more_is_refused(tmp_path):
    about = {"name": "emt", "version": "1", "level": "EMT"}
    journal = Journal(tmp_path / "some.journal", about)
    journal.add("a", {"result": {"energy": -1.0}})
    journal.add("b", {"result": {"energy": -2.0}})
    head, first, second = journal.path.read_text().splitlines()
    said = json.loads(head)
    less = json.dumps({**said, "calculator": {"name": "emt", "version": "1"}})
    unsigned = json.loads(second)
    del unsigned["crc32"]
    for lines, says in (
        ([less, first, second], "its labels have level None"),
        ([head, first, json.dumps(unsigned)], "damaged"),
        ([head, json.dumps({**json.loads(first), "crc32": None}), second], "damaged"),
    ):
        journal.path.write_text("\n".join(lines) + "\n")
        with pytest.raises(InputError, match=says):
            Journal(journal.path, about)
    journal.path.write_text(
        "\n".join([head, json.dumps(unsigned), first]) + "\n"
    )  # begun by a version before
    assert sorted(Journal(journal.path, about).results) == ["a", "b"]
