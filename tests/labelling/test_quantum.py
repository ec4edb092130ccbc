"""PySCF as a calculator: levels are read as written, limits are those of the formulas, energies those of PySCF."""

import math
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import write
from ase.units import Hartree

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.readers import load_frames
from pimlip_zoo.errors import InputError
from pimlip_zoo.labelling.basis_limit import extrapolation
from pimlip_zoo.labelling.calculators import find_labeller
from pimlip_zoo.labelling.evaluate import compute
from pimlip_zoo.labelling.failures import CalculationError
from pimlip_zoo.labelling.quantum import PySCFCalculator, parse_level
from pimlip_zoo.labelling.structures import Structure


def energy(atoms, text):
    atoms = atoms.copy()
    atoms.calc = PySCFCalculator(parse_level(text))
    return atoms.get_potential_energy()


def test_extrapolation_recovers_the_limit_of_its_own_formulas():
    limit = extrapolation("cc-pvtz", "cc-pvqz")
    scf = [-1.5 + 7.0 * math.exp(-5.46 * math.sqrt(x)) for x in (3, 4)]
    correlation = [-0.3 + 0.9 * x**-3.05 for x in (3, 4)]
    assert limit.hartree_fock(*scf) == pytest.approx(-1.5, abs=1e-13)
    assert limit.correlation(*correlation) == pytest.approx(-0.3, abs=1e-13)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("PBE", "is no level of theory"),
        ("pbe/def2-svp?grit=3", "did you mean grid?"),
        ("pbe/def2-svp?fitting=maybe", "'maybe' is not possible"),
        ("pbe/cc-pvdz:cc-pvtz", "pbe is not extrapolated"),
        ("mp2/cc-pvtz:cc-pvqz:cc-pvdz", "3 basis sets"),
        ("mp2/cc-pvdz:cc-pvqz", "no exponents are known"),
        ("mp2/cc-pvdz:def2-tzvpp", "no exponents are known"),
    ],
)
def test_what_is_no_level_is_refused(text, says):
    with pytest.raises(InputError) as error:
        parse_level(text)
    assert says in str(error.value)


def test_a_level_says_what_it_is():
    level = parse_level("CCSD(T)/cc-pVTZ:cc-pVQZ:cc-pVDZ?frozen=no&forces=numerical")
    assert str(level) == "CCSD(T)/cc-pvtz:cc-pvqz:cc-pvdz?frozen=no&forces=numerical"
    assert parse_level(str(level)) == level
    assert level.has_forces
    assert not parse_level("mp2/cc-pvdz").has_forces


class TestWithPySCF:
    @pytest.fixture(autouse=True)
    def _needs_pyscf(self):
        pytest.importorskip("pyscf")

    def test_hydrogen_in_a_minimal_basis_has_its_textbook_energy(self):
        # Szabo and Ostlund, Modern Quantum Chemistry, table 3.5: -1.1167 at 1.4 Bohr
        h2 = Atoms("H2", positions=[(0, 0, 0), (0, 0, 1.4 * 0.529177)])
        assert energy(h2, "hf/sto-3g?fitting=no") / Hartree == pytest.approx(-1.1167, abs=5e-5)

    def test_two_electrons_are_exact_in_coupled_cluster(self):
        import pyscf.fci

        h2 = Atoms("H2", positions=[(0, 0, 0), (0, 0, 0.8)])
        molecule_ = pyscf.gto.M(atom="H 0 0 0; H 0 0 0.8", basis="6-31g", verbose=0)
        exact = pyscf.fci.FCI(molecule_.RHF().run()).kernel()[0]
        assert energy(h2, "ccsd(t)/6-31g?fitting=no") / Hartree == pytest.approx(exact, abs=1e-7)

    def test_the_composite_is_the_sum_of_its_parts(self):
        water = molecule("H2O")
        parts = {
            text: energy(water, text)
            for text in ("hf/cc-pvdz", "hf/cc-pvtz", "mp2/cc-pvdz", "mp2/cc-pvtz", "ccsd(t)/cc-pvdz")
        }
        limit = extrapolation("cc-pvdz", "cc-pvtz")
        expected = limit.hartree_fock(parts["hf/cc-pvdz"], parts["hf/cc-pvtz"])
        expected += limit.correlation(
            parts["mp2/cc-pvdz"] - parts["hf/cc-pvdz"], parts["mp2/cc-pvtz"] - parts["hf/cc-pvtz"]
        )
        expected += parts["ccsd(t)/cc-pvdz"] - parts["mp2/cc-pvdz"]
        assert energy(water, "ccsd(t)/cc-pvdz:cc-pvtz:cc-pvdz") == pytest.approx(expected, abs=1e-6)

    @pytest.mark.parametrize("text", ["pbe/sto-3g?grid=6", "hf/sto-3g?fitting=no", "hf/cc-pvdz:cc-pvtz"])
    def test_forces_are_the_derivative_of_the_energy(self, text):
        atoms = molecule("OH" if "pbe" in text else "HF")
        atoms.rattle(0.05, seed=1)
        atoms.calc = PySCFCalculator(parse_level(text))
        forces = atoms.get_forces()
        atoms.calc = PySCFCalculator(
            parse_level(text + ("&" if "?" in text else "?") + "forces=numerical&step=0.001")
        )
        assert np.allclose(atoms.get_forces(), forces, atol=3e-3 if "pbe" in text else 2e-5)

    def test_central_differences_go_on_where_they_were_stopped(self, tmp_path, monkeypatch):
        atoms = molecule("HF")
        atoms.rattle(0.05, seed=1)
        level = parse_level("hf/sto-3g?forces=numerical")
        whole = PySCFCalculator(level)
        whole.calculate(atoms, ("energy", "forces"))
        computed, single = [], PySCFCalculator._parts

        def parts(calculator, positions, *, gradient, most=5):
            if len(computed) == most:
                raise KeyboardInterrupt
            computed.append(positions)
            return single(calculator, positions, gradient=gradient)

        monkeypatch.setattr(PySCFCalculator, "_parts", parts)
        calculator = PySCFCalculator(level)
        calculator.progress_folder = tmp_path / "kept"
        with pytest.raises(KeyboardInterrupt):
            calculator.calculate(atoms, ("energy", "forces"))
        file = tmp_path / "kept" / "displaced.jsonl"
        assert file.read_text().count("\n") == 1 + 4  # what it is of, and all but the structure itself
        with file.open("a") as stream:
            stream.write('["1 z -1", -9')  # the line that a kill tears

        monkeypatch.setattr(
            PySCFCalculator, "_parts", lambda *a, gradient: parts(*a, gradient=gradient, most=None)
        )
        computed.clear()
        calculator.calculate(atoms, ("energy", "forces"))
        assert len(computed) == 1 + 12 - 4
        np.testing.assert_array_equal(calculator.results["forces"], whole.results["forces"])

        atoms.rattle(0.05, seed=2)  # another structure: nothing of the first is taken
        computed.clear()
        calculator.calculate(atoms, ("energy", "forces"))
        assert len(computed) == 1 + 12

    def test_what_was_kept_of_a_calculation_is_gone_when_its_result_is_there(self, tmp_path):
        structure = Structure(Frame(numbers=np.array([2]), positions=np.zeros((1, 3))))
        labeller = find_labeller("pyscf:hf/sto-3g?forces=numerical")
        result = compute(structure, labeller, tmp_path / "kept")
        assert np.abs(result["forces"]).max() < 1e-6
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.slow
    def test_a_kill_in_the_middle_of_central_differences_loses_one_energy_at_most(self, tmp_path):
        water = molecule("H2O")
        water.rattle(0.05, seed=1)
        write(tmp_path / "water.extxyz", water)
        level = "pyscf:ccsd(t)/cc-pvdz:cc-pvtz:cc-pvdz?forces=numerical"
        command = [sys.executable, "-m", "pimlip_zoo", "label", "water.extxyz", "--calculator", level]
        command += ["-o", "water.lmdb"]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
        kept, end = tmp_path / "water.lmdb.scratch", time.monotonic() + 120

        def lines():
            return sum(file.read_bytes().count(b"\n") for file in kept.glob("*/displaced.jsonl"))

        while lines() < 4 and time.monotonic() < end:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(0.5)
        there = lines()
        assert 4 <= there < 19
        time.sleep(2.0)
        assert lines() == there  # the process that computes went with its parent
        begun = time.monotonic()
        first = next(kept.glob("*/displaced.jsonl")).read_text()
        again = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
        while lines() <= there and time.monotonic() < begun + 120:
            time.sleep(0.01)
        assert next(kept.glob("*/displaced.jsonl")).read_text().startswith(first)
        assert again.wait(300) == 0
        assert not kept.exists()
        assert load_frames(str(tmp_path / "water.lmdb"))[0].forces.shape == (3, 3)

    def test_open_shells_and_ions_are_told_apart(self):
        hydrogen = Atoms("H")
        assert energy(hydrogen, "hf/cc-pvtz") / Hartree == pytest.approx(-0.5, abs=1e-3)
        ion = Atoms("He")
        ion.info.update(charge=1, multiplicity=2)
        assert energy(ion, "hf/cc-pvtz") / Hartree == pytest.approx(-2.0, abs=5e-3)
        triplet = molecule("O2")
        assert energy(triplet, "hf/sto-3g") < energy(without_moments(triplet), "hf/sto-3g") - 1.0

    def test_what_pyscf_does_not_know_is_said(self):
        with pytest.raises(InputError, match="no functional 'pebe'"):
            energy(Atoms("He"), "pebe/sto-3g")
        with pytest.raises(CalculationError, match="PySCF refuses no-basis"):
            energy(Atoms("He"), "hf/no-basis")
        with pytest.raises(InputError, match="the structure is periodic"):
            energy(Atoms("He", cell=[3, 3, 3], pbc=True), "hf/sto-3g")

    def test_an_scf_that_does_not_converge_is_a_failure(self, monkeypatch):
        from pyscf import scf

        monkeypatch.setattr(scf.hf.SCF, "kernel", lambda field, *_, **__: setattr(field, "converged", False))
        monkeypatch.setattr(scf.hf.SCF, "newton", lambda field: field)
        with pytest.raises(CalculationError, match="the SCF does not converge"):
            energy(Atoms("He"), "hf/sto-3g?fitting=no")


def without_moments(atoms):
    atoms = atoms.copy()
    atoms.set_initial_magnetic_moments(None)
    atoms.info["multiplicity"] = 1
    return atoms
