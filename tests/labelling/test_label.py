"""``pimlip-zoo label``: what is computed is kept, found again, and right; what fails is kept with its reason."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.constraints import FixAtoms
from ase.io import read, write
from typer.testing import CliRunner

from pimlip_zoo.cli import app
from pimlip_zoo.cli.label import amount
from pimlip_zoo.datasets.readers import load_frames
from pimlip_zoo.errors import InputError
from pimlip_zoo.labelling.calculators import find_labeller
from pimlip_zoo.labelling.evaluate import compute, force_factor, plain_result
from pimlip_zoo.labelling.failures import CalculationError
from pimlip_zoo.labelling.journal import Journal, journal_path
from pimlip_zoo.labelling.label import _has_all_of, label
from pimlip_zoo.labelling.processes import Limits
from pimlip_zoo.labelling.structures import as_atoms, load_structures
from pimlip_zoo.labelling.worker import as_message, from_message

ODD = '''
import os, signal, time
import numpy as np
from ase.calculators.calculator import Calculator, all_changes

class Spring(Calculator):
    """Energy |r|^2; an atom further than 3 A away sets off the mode."""
    implemented_properties = ["energy", "forces"]
    mode = os.environ.get("ODD_MODE", "")
    def calculate(self, atoms=None, properties=(), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        with open("calls.txt", "a") as file:
            file.write("x")
        r = self.atoms.positions
        self.results = {"energy": float((r ** 2).sum()), "forces": -2.0 * r}
        print("chatter that is no answer")
        if self.mode == "units":
            self.results["forces"] = self.results["forces"] / 51.4
        if np.abs(r).max() < 3.0:
            return
        if self.mode == "hang":
            time.sleep(60)
        if self.mode == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.mode == "memory":
            self.held = b"x" * 700_000_000
            time.sleep(60)
        if self.mode == "nan":
            self.results["energy"] = float("nan")
        if self.mode == "atoms":
            self.results["forces"] = self.results["forces"][1:]
        if self.mode == "raise":
            raise RuntimeError("no such luck")
        if self.mode == "scf":
            self.converged = False
        if self.mode == "slow":
            time.sleep(0.2)

def make():
    return Spring()

def charged(atoms):
    if atoms.info["charge"] == 2:
        raise RuntimeError("no such luck")
    return Spring()

def nothing():
    return 3

def broken():
    raise OSError("no licence")
'''


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "odd.py").write_text(ODD)
    monkeypatch.chdir(tmp_path)
    structures = [Atoms("CO", positions=[(0, 0, 0), (0, 0, 1.1 + 0.01 * k)]) for k in range(3)]
    structures.insert(1, Atoms("CO", positions=[(0, 0, 0), (0, 0, 4.0)]))
    write("some.extxyz", structures)
    return tmp_path


def called(*arguments, code=0):
    result = CliRunner().invoke(app, ["label", *map(str, arguments)])
    if code == 2:
        assert isinstance(result.exception, InputError), result.output
        return str(result.exception)
    assert result.exit_code == code, result.output + str(result.exception)
    return result.output


def calls(folder):
    return len((folder / "calls.txt").read_text())


def test_labels_are_those_of_the_calculator_in_the_order_of_the_file(here):
    called(
        "some.extxyz", "--calculator", "odd:make", "-o", "labels.lmdb", "--no-compare", "--level", "spring"
    )
    frames = load_frames("labels.lmdb")
    assert [frame.energy for frame in frames] == pytest.approx([1.21, 16.0, 1.11**2, 1.12**2], abs=1e-12)
    assert np.allclose(frames[1].forces, [[0, 0, 0], [0, 0, -8]], atol=1e-12)
    assert frames[0].info["level_of_theory"] == "spring"
    assert frames[0].info["calculator"] == "odd:make"


def test_nothing_is_computed_twice(here):
    called("some.extxyz@:2", "--calculator", "odd:make", "-o", "labels.extxyz", "--no-compare")
    assert calls(here) == 2
    said = called(
        "some.extxyz,some.extxyz", "--calculator", "odd:make", "-o", "labels.extxyz", "--no-compare"
    )
    assert calls(here) == 4
    assert "8 of 8 structures labelled (6 were there)" in said
    assert len(read("labels.extxyz", ":")) == 8


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("hang", "not done within 1 s"),
        ("crash", "the process was ended by SIGSEGV"),
        ("memory", "more than 300 MB"),
        ("nan", "energy is not finite"),
        ("atoms", "forces has shape (1, 3), the structure has 2 atoms"),
        ("raise", "no such luck"),
        ("scf", "the SCF did not converge"),
    ],
)
def test_a_structure_that_fails_is_kept_with_its_reason_and_the_others_are_labelled(
    here, monkeypatch, mode, reason
):
    monkeypatch.setenv("ODD_MODE", mode)
    limits = ["--time-limit", "1s" if mode == "hang" else "30s", "--memory", "300MB"]
    said = called(
        "some.extxyz", "--calculator", "odd:make", "-o", "labels.extxyz", *limits, "--no-compare", code=1
    )
    assert "3 of 4 structures labelled" in said
    assert reason in said
    assert "frame 1" in said
    assert len(read("labels.extxyz", ":")) == 3
    (failed,) = read("labels.extxyz.failed.extxyz", ":")
    assert reason in failed.info["failure"]
    assert failed.positions[1, 2] == pytest.approx(4.0)


def test_what_failed_is_computed_again_only_when_asked_for(here, monkeypatch):
    monkeypatch.setenv("ODD_MODE", "nan")
    command = ["some.extxyz", "--calculator", "odd:make", "-o", "labels.extxyz", "--no-compare"]
    called(*command, code=1)
    monkeypatch.setenv("ODD_MODE", "")
    called(*command, code=1)
    assert calls(here) == 4
    called(*command, "--retry")
    assert calls(here) == 5
    assert not Path("labels.extxyz.failed.extxyz").exists()


def test_forces_in_another_unit_than_energies_are_refused(here, monkeypatch):
    monkeypatch.setenv("ODD_MODE", "units")
    said = called("some.extxyz", "--calculator", "odd:make", "-o", "labels.extxyz", code=2)
    assert "energies change by 51.4 of what the forces say" in said
    assert not Path("labels.extxyz").exists()


def test_energies_and_forces_that_belong_together_have_factor_one(here):
    called("some.extxyz", "--calculator", "odd:make", "-o", "labels.extxyz")
    assert calls(here) == 6  # two more, at one structure
    lines = [json.loads(line) for line in journal_path(Path("labels.extxyz")).read_text().splitlines()]
    assert [line["force_factor"] for line in lines if "force_factor" in line] == [1.0]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("gfn3", "no calculator is called 'gfn3'"),
        ("odd:gone", "is odd:gone importable from here?"),
        ("nomodule:make", "No module named 'nomodule'"),
        ("odd:ODD", "has no attribute 'ODD'"),
        ("odd:nothing", "odd:nothing returns int, which is no ASE calculator"),
        ("pyscf:PBE", "is no level of theory"),
    ],
)
def test_a_calculator_that_cannot_be_used_is_one_line_and_writes_nothing(here, name, says):
    before = sorted(path.name for path in here.iterdir())
    assert says in called("some.extxyz", "--calculator", name, "-o", "labels.extxyz", code=2)
    after = sorted(path.name for path in here.iterdir() if path.name != "__pycache__")
    assert [name for name in after if not name.startswith("labels.extxyz.journal")] == before


FOREIGN = """
from pathlib import Path
Path(__file__).with_name("was-run").touch()
raise ImportError("a library is missing")
"""


@pytest.mark.parametrize("name", ["emt", "gfn2", "pyscf:PBE/sto-3g", "odd:make"])
@pytest.mark.parametrize(
    "options", [("-o", "labels.extxyz"), ("--write-inputs", "jobs")], ids=["label", "inputs"]
)
def test_modules_of_the_working_folder_do_not_stand_in_for_packages(here, name, options):
    for package in ("ase", "numpy", "yaml", "pydantic", "tblite", "pyscf", "msgpack", "lmdb"):
        (here / f"{package}.py").write_text(FOREIGN)
    if name.startswith("pyscf") and importlib.util.find_spec("pyscf") is None:
        assert "pyscf is not installed" in called("some.extxyz@:1", "--calculator", name, *options, code=2)
    else:
        called("some.extxyz@:1", "--calculator", name, *options)
    assert not (here / "was-run").exists()


def test_a_calculator_finds_what_it_imports_beside_it_when_it_calculates(here):
    (here / "late.py").write_text(
        "from odd import Spring\n"
        "class Late(Spring):\n"
        "    def calculate(self, *arguments, **named):\n"
        "        import beside\n"
        "        super().calculate(*arguments, **named)\n"
        "def make():\n"
        "    return Late()\n"
    )
    (here / "beside.py").touch()
    called("some.extxyz@:1", "--calculator", "late:make", "-o", "labels.extxyz")
    assert len(load_frames("labels.extxyz")) == 1


def test_a_package_that_does_not_load_is_one_line(here, monkeypatch):
    site = here / "site"
    site.mkdir()
    (site / "tblite.py").write_text(FOREIGN)
    for module in [name for name in sys.modules if name.split(".")[0] == "tblite"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(str(site))
    for options in (("-o", "labels.extxyz"), ("--write-inputs", "jobs")):
        said = called("some.extxyz@:1", "--calculator", "gfn2", *options, code=2)
        assert "tblite cannot be imported: a library is missing" in said
    assert not (here / "jobs").exists()


def test_a_factory_that_raises_is_a_failure_with_its_reason(here):
    assert "no licence" in called(
        "some.extxyz@:1", "--calculator", "odd:broken", "-o", "labels.extxyz", code=1
    )


def test_labels_of_two_calculators_do_not_get_into_one_file(here):
    called("some.extxyz", "--calculator", "odd:make", "-o", "labels.extxyz", "--no-compare")
    said = called("some.extxyz", "--calculator", "emt", "-o", "labels.extxyz", code=2)
    assert "labels of two kinds do not belong in one file" in said


def test_failures_of_a_calculator_do_not_stand_in_the_way_of_another(here):
    called("some.extxyz", "--calculator", "odd:broken", "-o", "labels.extxyz", code=1)
    said = called("some.extxyz", "--calculator", "odd:make", "-o", "labels.extxyz", "--no-compare")
    assert "4 of 4 structures labelled" in said
    assert not Path("labels.extxyz.failed.extxyz").exists()


def test_ctrl_c_says_that_labels_are_kept_and_the_same_command_goes_on(here, monkeypatch):
    words = (
        "some.extxyz",
        "--calculator",
        "odd:make",
        "-o",
        "labels.lmdb",
        "--no-compare",
        "--level",
        "spring",
    )

    def cut(*arguments, progress, **options):
        def stop(outcome, done, total):
            if done == 2:
                raise KeyboardInterrupt

        return label(*arguments, progress=stop, **options)

    with monkeypatch.context() as patched:
        patched.setattr(sys.modules["pimlip_zoo.labelling.label"], "label", cut)
        said = called(*words, code=130)
    assert (
        "stopped; the labels so far are kept beside labels.lmdb: the same command goes on with them" in said
    )
    assert "4 of 4 structures labelled (2 were there)" in called(*words)


def test_a_refused_calculator_leaves_no_journal(here):
    called("some.extxyz", "--calculator", "odd:nothing", "-o", "labels.extxyz", code=2)
    assert not journal_path(Path("labels.extxyz")).exists()


def test_a_file_that_no_labelling_wrote_stays(here):
    Path("labels.extxyz").write_text("mine")
    assert "is there already" in called("some.extxyz", "--calculator", "emt", "-o", "labels.extxyz", code=2)
    assert Path("labels.extxyz").read_text() == "mine"


def test_after_a_kill_all_that_was_there_is_used_and_no_process_is_left(here, monkeypatch):
    monkeypatch.setenv("ODD_MODE", "slow")
    write("many.extxyz", [Atoms("CO", positions=[(0, 0, 0), (0, 0, 4 + 0.01 * k)]) for k in range(12)])
    command = [*("label", "many.extxyz", "--calculator", "odd:make", "-o", "many.lmdb", "--no-compare")]
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    process = subprocess.Popen(
        [sys.executable, "-m", "pimlip_zoo", *command, "--workers", "2"],
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    journal = journal_path(here / "many.lmdb")
    end = time.monotonic() + 60
    while (not journal.exists() or journal.read_bytes().count(b"\n") < 4) and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = journal.read_bytes().count(b"\n") - 1
    assert 3 <= done < 12
    time.sleep(0.4)
    begun = calls(here)
    time.sleep(0.5)
    assert calls(here) == begun <= done + 2  # the workers went with their parent
    with journal.open("ab") as file:
        file.write(b'{"key": "torn')
    called(*command[1:])
    assert calls(here) - begun == 12 - done
    assert len(load_frames("many.lmdb")) == 12


def test_two_processes_do_not_write_to_one_journal(here):
    from pimlip_zoo.labelling.journal import opened_journal

    about = {"name": "emt", "version": "1", "level": "EMT"}
    with opened_journal(here / "a.lmdb", about), pytest.raises(InputError, match="another process"):
        opened_journal(here / "a.lmdb", about).__enter__()
    journal_path(here / "a.lmdb").write_text("{nonsense\n")
    with pytest.raises(InputError, match="damaged"):
        Journal(journal_path(here / "a.lmdb"), about)


def test_several_at_a_time_give_the_same_labels(here):
    called("some.extxyz", "--calculator", "odd:make", "-o", "a.extxyz", "--no-compare")
    called("some.extxyz", "--calculator", "odd:make", "-o", "b.extxyz", "--no-compare", "--workers", "3")
    assert Path("a.extxyz").read_bytes() == Path("b.extxyz").read_bytes()


def test_an_executor_of_somebody_else_computes_the_same(here, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    monkeypatch.syspath_prepend(str(here))
    called("some.extxyz", "--calculator", "odd:make", "-o", "a.extxyz", "--no-compare")
    with ThreadPoolExecutor(1) as executor:
        structures = load_structures("some.extxyz")
        result = label(structures, here / "b.extxyz", "odd:make", compare=False, executor=executor)
        assert result.labelled == 4
        with pytest.raises(InputError, match="no calculator is called 'gfn3'"):
            label(structures, here / "c.extxyz", "gfn3", executor=executor)
        with pytest.raises(InputError, match="the executor's business"):
            label(structures, here / "c.extxyz", "emt", executor=executor, limits=Limits(seconds=1))
    assert Path("a.extxyz").read_bytes() == Path("b.extxyz").read_bytes()


def test_charge_and_spin_reach_the_calculator(here):
    cation = molecule("OH")
    cation.info.update(charge=1, multiplicity=3)
    write("charged.extxyz", [cation, molecule("OH")])
    structures = load_structures("charged.extxyz")
    assert [(s.charge, s.multiplicity) for s in structures] == [(1, 3), (0, 2)]  # ASE's OH has a moment
    atoms = as_atoms(structures[0])
    assert atoms.get_initial_charges().sum() == pytest.approx(1.0)
    assert atoms.info["multiplicity"] == 3
    assert structures[0].key() != structures[1].key()
    back = from_message(json.loads(json.dumps(as_message(structures[0]))))
    assert back.key() == structures[0].key()


def test_gfn2_computes_charged_and_open_shells(here):
    pytest.importorskip("tblite")
    from tblite.ase import TBLite

    atoms = molecule("H2O")
    neutral = TBLite(method="GFN2-xTB", verbosity=0)
    atoms.calc = neutral
    reference = {0: atoms.get_potential_energy()}
    ion = molecule("H2O")
    ion.calc = TBLite(method="GFN2-xTB", charge=1, multiplicity=2, verbosity=0)
    reference[1] = ion.get_potential_energy()
    plus = molecule("H2O")
    plus.info.update(charge=1, multiplicity=2)
    write("water.extxyz", [molecule("H2O"), plus])
    result = label(load_structures("water.extxyz"), here / "water.extxyz.lmdb", "gfn2")
    assert result.labelled == 2
    frames = load_frames("water.extxyz.lmdb")
    assert frames[0].energy == pytest.approx(reference[0], abs=1e-9)
    assert frames[1].energy == pytest.approx(reference[1], abs=1e-9)
    assert frames[1].info["charge"] == 1


def test_a_factory_may_look_at_the_structure(here):
    ion = molecule("CO")
    ion.info["charge"] = 2
    write("ions.extxyz", [molecule("CO"), ion])
    said = called("ions.extxyz", "--calculator", "odd:charged", "-o", "a.extxyz", "--no-compare", code=1)
    assert "1 of 2 structures labelled" in said


def test_a_calculator_without_charges_fails_on_ions_rather_than_ignore_them():
    ion = molecule("CO")
    ion.info["charge"] = 2
    (structure,) = load_structures_of([ion])
    with pytest.raises(CalculationError, match="knows neither charge nor spin"):
        compute(structure, find_labeller("emt"))


def load_structures_of(images):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write(f"{folder}/a.extxyz", images)
        return load_structures(f"{folder}/a.extxyz")


@pytest.mark.parametrize(
    ("info", "says"),
    [
        ({"charge": 0.5}, "0.5 is no whole number"),
        ({"charge": 30}, r"the charge is \+30, and there are 14 electrons"),
        ({"multiplicity": 2}, "multiplicity 2 is impossible with 14 electrons"),
    ],
)
def test_impossible_charges_and_spins_are_refused_by_frame(tmp_path, info, says):
    bad = molecule("CO")
    bad.info.update(info)
    write(tmp_path / "bad.extxyz", [molecule("CO"), bad])
    with pytest.raises(InputError, match=says) as error:
        load_structures(str(tmp_path / "bad.extxyz"))
    assert error.value.frame == 1


def test_the_factor_between_energies_and_forces_is_one():
    atoms = molecule("CO")
    atoms.positions[0, 2] += 0.1
    (structure,) = load_structures_of([atoms])
    labeller = find_labeller("emt")
    forces = np.array(compute(structure, labeller)["forces"])
    assert force_factor(structure, labeller, forces) == pytest.approx(1.0, abs=2e-3)
    assert force_factor(structure, labeller, forces / 27.2114) == pytest.approx(27.2114, rel=2e-3)
    assert force_factor(structure, labeller, 0 * forces) is None


def test_stress_comes_as_a_tensor_and_equal_to_the_calculators():
    from ase.build import bulk
    from ase.calculators.emt import EMT

    atoms = bulk("Cu") * (2, 1, 1)
    atoms.set_cell(atoms.cell.array @ np.array([[1.01, 0.02, 0], [0, 1, 0.01], [0, 0, 0.98]]), True)
    (structure,) = load_structures_of([atoms])
    result = compute(structure, find_labeller("emt"))
    atoms.calc = EMT()
    assert np.allclose(result["stress"], atoms.get_stress(voigt=False), atol=1e-12)


def test_results_of_the_wrong_kind_are_no_results():
    with pytest.raises(CalculationError, match="there is no energy"):
        plain_result({"forces": np.zeros((2, 3))}, 2)
    with pytest.raises(CalculationError, match="energy is no number"):
        plain_result({"energy": "low"}, 2)


def test_amounts_have_units():
    assert amount("1.5h", {"h": 3600.0}, "--time-limit") == 5400
    with pytest.raises(InputError, match="'-3' is no amount"):
        amount("-3", {"s": 1.0, "": 1.0}, "--time-limit")


def test_limits_of_nothing_are_none():
    assert Limits() == Limits(seconds=None, memory=None)


def test_inputs_for_a_cluster_go_out_and_come_back(here):
    said = called("some.extxyz", "--calculator", "odd:make", "--write-inputs", "jobs")
    assert "4 folders in jobs" in said
    script = Path("jobs/array.slurm").read_text()
    assert "--array=0-3" in script
    subprocess.run(["bash", "-n", "jobs/array.slurm"], check=True)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "SLURM_ARRAY_TASK_ID": "1"}
    subprocess.run(["bash", "jobs/array.slurm"], check=True, env=environment, stdout=subprocess.DEVNULL)
    command = ["some.extxyz", "--calculator", "odd:make", "--read-outputs", "jobs", "-o", "labels.extxyz"]
    said = called(*command, code=1)
    assert "1 of 4 structures labelled" in said
    assert "3: not computed yet" in said
    assert read("labels.extxyz").get_potential_energy() == pytest.approx(16.0)
    assert "was written for odd:make" in called(*command[:2], "emt", *command[3:], code=2)
    assert "holds something already" in called(*command[:3], "--write-inputs", "jobs", code=2)


FILES = """
from ase.calculators.espresso import Espresso, EspressoProfile

def make(atoms):
    return Espresso(
        profile=EspressoProfile(command="pw.x", pseudo_dir="/pseudo"),
        pseudopotentials={"C": "C.upf", "O": "O.upf"},
        input_data={"system": {"ecutwfc": 40, "tot_charge": atoms.info["charge"]}},
        kpts=None,
    )
"""


def test_a_factory_that_fails_leaves_no_half_written_folder(here):
    before = sorted(here.iterdir())
    said = called("some.extxyz", "--calculator", "odd:broken", "--write-inputs", "jobs", code=2)
    assert "odd:broken fails: no licence" in said
    assert [path for path in sorted(here.iterdir()) if path.name != "__pycache__"] == before


def test_a_program_gets_its_own_input_files(here):
    Path("espresso_pbe.py").write_text(FILES)
    boxed = molecule("CO", vacuum=3.0, pbc=True)
    boxed.info["charge"] = 1
    write("boxed.extxyz", boxed)
    called("boxed.extxyz", "--calculator", "espresso_pbe:make", "--write-inputs", "jobs")
    text = Path("jobs/00000/espresso.pwi").read_text()
    assert "tot_charge       = 1" in text


def test_an_output_without_convergence_or_of_another_structure_is_a_failure(here):
    called("some.extxyz@:3", "--calculator", "odd:make", "--write-inputs", "jobs")
    atoms = read("some.extxyz", ":")
    from ase.calculators.singlepoint import SinglePointCalculator

    for number in range(2):
        image = atoms[0].copy()
        image.calc = SinglePointCalculator(image, energy=-3.0, forces=np.zeros((2, 3)))
        write(f"jobs/{number:05d}/out.extxyz", image)
    Path("jobs/00002/out.extxyz").write_text("Program PWSCF v.7\nconvergence NOT achieved after 100\n")
    said = called(
        *("some.extxyz@:3", "--calculator", "odd:make", "--read-outputs", "jobs", "-o", "labels.extxyz"),
        *("--output-file", "out.extxyz"),
        code=1,
    )
    assert "1 of 3 structures labelled" in said
    assert "the SCF did not converge" in said
    assert "differs by" in said


def test_a_few_structures_have_a_line_each_and_many_a_line_each_tenth(here):
    pair = Atoms("CO", positions=[(0, 0, 0), (0, 0, 1.1)])
    for count, lines in ((13, 13), (40, 11)):
        structures = []
        for k in range(count):
            pair.positions[1, 2] = 1.1 + 0.001 * k
            structures.append(pair.copy())
        write("several.extxyz", structures)
        said = called(
            *(
                "several.extxyz",
                "--calculator",
                "odd:make",
                "-o",
                f"{count}.lmdb",
                "--no-compare",
                "--level",
                "x",
            )
        )
        told = re.findall(rf"^(\d+) of {count} \(", said, re.MULTILINE)
        assert len(told) == lines
        assert told[-1] == str(count)
        assert said.count(" left\n") == lines - 1


def test_a_file_of_labels_loses_none_without_a_word(tmp_path):
    """Called again with other structures, or after it was edited."""
    rng = np.random.default_rng(0)
    frames = [Atoms("Cu2", [[0, 0, 0], [2.4 + 0.1 * k, 0.01 * rng.normal(), 0]]) for k in range(6)]
    out, data = tmp_path / "labels.extxyz", tmp_path / "data.extxyz"

    def labelled(part, **options):
        write(data, part)
        return label(load_structures(str(data)), out, "emt", **options)

    assert labelled(frames[:4]).labelled == 4
    with pytest.raises(
        InputError, match=r"labels\.extxyz: has 4 of 4 structures whose labels or notes would not be"
    ):
        labelled(frames[4:])
    assert len(read(out, ":")) == 4
    assert labelled(frames).labelled == 6
    kept = out.read_text()
    energy = re.search(r" energy=(\S+)", kept)[1]
    out.write_text(kept.replace(f"energy={energy}", "energy=1.5", 1))
    with pytest.raises(InputError, match="has 1 of 6 structures"):
        labelled(frames)
    out.write_text(kept.replace("energy=", "config_type=mine energy=", 1))
    with pytest.raises(InputError, match="has 1 of 6 structures"):
        labelled(frames)
    out.write_text(kept)
    edited = read(out, ":")
    edited[1].set_constraint(FixAtoms([0]))
    write(out, edited)
    with pytest.raises(InputError, match="has constraints, which would not be in it any more"):
        labelled(frames)
    out.write_text(kept)
    edited = read(out, ":")
    edited[2].calc.results["forces"] = np.ones((2, 3))
    write(out, edited)
    with pytest.raises(InputError, match="has 1 of 6 structures"):
        labelled(frames)
    out.write_text(kept + kept)
    with pytest.raises(InputError, match="has 6 of 12 structures"):
        labelled(frames)
    assert labelled(frames, overwrite=True).labelled == 6
    assert labelled(frames[:2], overwrite=True).labelled == 2


def test_weights_of_structures_are_kept(tmp_path):
    frames = [
        Atoms("Cu2", [[0, 0, 0], [2.4 + 0.1 * k, 0, 0]], info={"config_weight": 0.5 * k}) for k in range(3)
    ]
    frames[1].info["config_forces_weight"] = 0.0
    write(tmp_path / "data.extxyz", frames)
    out = tmp_path / "labels.extxyz"
    for _ in range(2):
        assert label(load_structures(str(tmp_path / "data.extxyz")), out, "emt").labelled == 3
        labelled = load_frames(str(out))
        assert [frame.weight for frame in labelled] == [0.0, 0.5, 1.0]
        assert [frame.label_weights[1] for frame in labelled] == [1.0, 0.0, 1.0]


def test_a_stress_that_a_file_has_and_a_journal_has_not_would_be_lost():
    (new,) = load_frames("builtin:cual-emt/train@0")
    assert _has_all_of(new, new)
    assert _has_all_of(new, replace(new, stress=None, forces=None))
    assert not _has_all_of(replace(new, stress=None), new)
    assert not _has_all_of(new, replace(new, stress=new.stress + 1e-3))
    charged = replace(new, initial={"initial_charges": np.ones(len(new.numbers))})
    assert _has_all_of(charged, charged)
    assert not _has_all_of(new, charged)


@pytest.mark.parametrize("name", ["labels.extxyz", "labels.lmdb"])
def test_labelling_goes_on_to_the_same_file_whatever_the_structures_state(name, tmp_path):
    frames = [Atoms("Cu2", [[0, 0, 0], [2.4 + 0.1 * k, 1e-9 / 3, 0]]) for k in range(4)]
    frames[0].set_initial_charges([0.5, -0.5])
    frames[1].info |= {"charge": 0, "note": "a b", "number": 1 / 3}
    frames[2].set_cell(np.eye(3) * 9 + 0.1)
    frames[2].pbc = True
    for count in (3, 3, 4):
        write(tmp_path / "data.extxyz", frames[:count])
        result = label(load_structures(str(tmp_path / "data.extxyz")), tmp_path / name, "emt")
        assert result.labelled == count


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--output-file", "OUTCAR"], "--output-file: is of --read-outputs"),
        (["--read-outputs", "w", "--retry"], "--retry: goes without --read-outputs"),
        (["--read-outputs", "w", "--workers", "1"], "--workers: goes without --read-outputs"),
        (["--read-outputs", "w", "--time-limit", "1h"], "--time-limit: goes without --read-outputs"),
        (["--write-inputs", "w", "--no-compare"], "--compare: goes without --write-inputs"),
        (["--write-inputs", "w", "--overwrite"], "--overwrite: goes without --write-inputs"),
    ],
)
def test_options_that_would_change_nothing_are_refused(given, says, tmp_path):
    out = [] if "--write-inputs" in given else ["-o", str(tmp_path / "a.extxyz")]
    command = ["label", "builtin:ethanol-gfn2@:2", "--calculator", "emt", *given, *out]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, InputError)
    assert says in str(result.exception)
    assert not list(tmp_path.iterdir())
