"""The built-in methanol: what has coupled-cluster labels, what they are, and how they came about."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.data import chemical_symbols
from ase.io import write
from typer.testing import CliRunner

from pimlip_zoo.cli import app
from pimlip_zoo.datasets.builtin import (
    builtin_atom_energies,
    builtin_provenance,
    builtin_splits,
    load_builtin,
)
from pimlip_zoo.datasets.builtin_format import read_packed
from pimlip_zoo.datasets.frame import frame_to_atoms
from pimlip_zoo.errors import InputError
from pimlip_zoo.locks import try_lock

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "builtin_data"))

import methanol

CBS, LOW = "methanol-cbs", "methanol-low"


def low_by_geometry():
    frames = [frame for split in builtin_splits(LOW) for frame in load_builtin(f"{LOW}/{split}")]
    return {frame.positions.tobytes(): frame for frame in frames}


def test_energies_are_there_and_forces_only_of_those_that_judge():
    splits = builtin_splits(CBS)
    assert list(splits) == ["train", "valid", "test", "test_forces"]
    assert splits["train"] >= 100
    for split in splits:
        for frame in load_builtin(f"{CBS}/{split}"):
            assert sorted(frame.numbers) == [1, 1, 1, 1, 6, 8]
            assert np.isfinite(frame.energy)
            assert (frame.forces is not None) == (split == "test_forces")


def test_the_card_says_how_many_are_labelled_and_how_many_are_planned():
    card, splits = builtin_provenance(CBS), builtin_splits(CBS)
    assert card["planned"] == {"train": 500, "valid": 100, "test": 300, "test_forces": 50}
    assert {split: content["frames"] for split, content in card["splits"].items()} == splits
    assert all(splits[split] <= count for split, count in card["planned"].items())
    for key in ("extrapolation", "frozen_core", "density_fitting", "convergence", "largest_net_force"):
        assert card[key]


def test_the_low_level_has_forces_of_the_same_structures():
    low = low_by_geometry()
    assert builtin_splits(LOW) == {"train": 500, "valid": 100, "test": 300}
    for split in builtin_splits(CBS):
        own = "test" if split == "test_forces" else split
        geometries = {frame.positions.tobytes() for frame in load_builtin(f"{LOW}/{own}")}
        for frame in load_builtin(f"{CBS}/{split}"):
            assert (
                frame.positions.tobytes() in geometries
            )  # nothing that tests is trained on at the low level
            assert low[frame.positions.tobytes()].forces.shape == (6, 3)


def test_the_two_levels_describe_one_molecule():
    low = low_by_geometry()
    frames = [frame for split in builtin_splits(CBS) for frame in load_builtin(f"{CBS}/{split}")]
    difference = np.array([frame.energy - low[frame.positions.tobytes()].energy for frame in frames])
    assert difference.std() < 0.05
    assert np.std([frame.energy for frame in frames]) > 0.15
    judges = load_builtin(f"{CBS}/test_forces")
    high = np.array([frame.forces for frame in judges])
    cheap = np.array([low[frame.positions.tobytes()].forces for frame in judges])
    assert np.sqrt(np.mean((high - cheap) ** 2)) < 0.4 * np.sqrt(np.mean(high**2))


def test_differences_of_energies_make_forces_without_net_force_and_torque():
    for frame in load_builtin(f"{CBS}/test_forces"):
        np.testing.assert_allclose(frame.forces.sum(axis=0), 0, atol=2e-4)
        np.testing.assert_allclose(np.cross(frame.positions, frame.forces).sum(axis=0), 0, atol=2e-4)


def test_the_energy_of_atomisation_is_that_of_methanol():
    # 22.2 eV at the minimum, from the measured heats of formation and the zero-point energy (Curtiss et al., J. Chem.
    # Phys. 106, 1063 (1997)); the composite leaves out correlation of the core and scalar relativity.
    atoms = builtin_atom_energies(CBS)
    energies = [
        frame.energy - sum(atoms[chemical_symbols[z]] for z in frame.numbers) for frame in load_builtin(CBS)
    ]
    assert -22.4 < min(energies) < -21.8
    assert max(energies) < -20.0


@pytest.mark.slow
def test_labels_are_those_of_pyscf():
    pytest.importorskip("pyscf")
    from pimlip_zoo.labelling.quantum import PySCFCalculator, parse_level

    level = parse_level(methanol.LEVEL.removeprefix("pyscf:"))
    calculator = PySCFCalculator(level)
    for split in ("train", "valid", "test"):
        frame = load_builtin(f"{CBS}/{split}")[-1]
        atoms = frame_to_atoms(replace(frame, energy=None))
        atoms.calc = calculator
        assert atoms.get_potential_energy() == pytest.approx(frame.energy, abs=2e-6)
    frame = load_builtin(f"{CBS}/test_forces")[0]
    energies = []
    for sign in (1, -1):
        atoms = frame_to_atoms(replace(frame, energy=None, forces=None))
        atoms.positions[1, 2] += sign * methanol.STEP
        atoms.calc = calculator
        energies.append(atoms.get_potential_energy())
    assert -(energies[0] - energies[1]) / (2 * methanol.STEP) == pytest.approx(frame.forces[1, 2], abs=5e-4)


def test_the_low_level_is_that_of_tblite():
    pytest.importorskip("tblite")
    from ethanol import label_gfn2

    for frame in load_builtin(f"{LOW}/test")[:3]:
        again = label_gfn2(frame_to_atoms(frame))
        np.testing.assert_allclose(again.energy, frame.energy, rtol=0, atol=1e-5)
        np.testing.assert_allclose(again.forces, frame.forces, rtol=0, atol=2e-4)


class TestTheScript:
    def test_parts_come_in_the_order_of_use_and_make_the_whole(self):
        parts = methanol.parts()
        assert [part.split for part in parts[:5]] == ["atoms", "train", "valid", "test", "test_forces"]
        whole = {name: max(part.stop for part in parts if part.split == name) for name in methanol.SPLITS}
        assert whole == methanol.SPLITS
        judges = sorted((part.start, part.stop) for part in parts if part.split == methanol.FORCES)
        assert judges == [(start, start + 5) for start in range(0, 50, 5)]

    def test_what_one_process_has_begun_another_passes_over(self, tmp_path, monkeypatch, capsys):
        done = []
        monkeypatch.setattr(
            methanol,
            "_label_part",
            lambda folder, part, _: done.append(part) or bool((folder / part.done).touch()) or True,
        )
        lock = try_lock(tmp_path / "train.busy")
        assert not methanol.label(tmp_path, 1.0)
        assert "train: another process is at it" in capsys.readouterr().out
        assert {part.split for part in done} == {"atoms", "valid", "test", "test_forces"}
        lock.release()
        assert methanol.label(tmp_path, 1.0)
        assert [part for part in methanol.parts() if done.count(part) != 1] == []

    def test_a_part_that_was_stopped_is_packed_as_far_as_it_came(self, tmp_path):
        from pimlip_zoo.labelling.structures import load_structures

        pytest.importorskip("tblite")
        methanol_frames = {name: load_builtin(f"{LOW}/{name}")[:4] for name in methanol.SPLITS}
        methanol_frames[methanol.FORCES] = methanol_frames["test"][:2]
        for name, frames in methanol_frames.items():
            write(tmp_path / f"{name}.extxyz", [frame_to_atoms(frame) for frame in frames])
        from ase import Atoms

        write(tmp_path / "atoms.extxyz", [Atoms("H"), Atoms("C"), Atoms("O")])
        with pytest.raises(InputError, match="no labels of"):
            methanol.pack(tmp_path, tmp_path)
        for name, file in (
            ("atoms", "atoms"),
            *((n, n) for n in methanol.SPLITS),
            (methanol.FORCES, "test_forces-0"),
        ):
            level = methanol.LEVEL + ("?forces=numerical&step=0.0025" if name == methanol.FORCES else "")
            head = {"calculator": {"name": level, "version": "pyscf 2", "level": "?"}}
            lines = [json.dumps(head)]
            for number, structure in enumerate(load_structures(f"{tmp_path / name}.extxyz")[:3]):
                forces = {"forces": [[0.1, 0, 0]] * 6} if name == methanol.FORCES else {}
                lines.append(json.dumps({"key": structure.key(), "result": {"energy": -number, **forces}}))
            (tmp_path / f"{file}.lmdb.journal").write_text("\n".join(lines) + '\n{"key": "half')
        methanol.pack(tmp_path, tmp_path)
        packed = read_packed(tmp_path / "methanol-cbs.npz")
        assert {name: len(frames) for name, frames in packed.splits.items()} == {
            "train": 3,
            "valid": 3,
            "test": 1,  # two of the three are among those with forces
            "test_forces": 2,
        }
        assert [frame.energy for frame in packed.splits["train"]] == [0.0, -1.0, -2.0]
        assert packed.atom_energies == {"H": 0.0, "C": -1.0, "O": -2.0}
        assert packed.provenance["largest_net_force"].startswith("6.0e-01")
        assert len(read_packed(tmp_path / "methanol-low.npz").splits["train"]) == 4


def test_the_sets_are_listed_with_their_splits_and_cards():
    said = CliRunner().invoke(app, ["data", "builtin"]).output
    for name in (CBS, LOW, "ethanol-gfn2"):
        assert f"builtin:{name}" in said
    assert f"train {builtin_splits(CBS)['train']}, valid" in said
    card = CliRunner().invoke(app, ["data", "builtin", CBS]).output
    assert "frozen_core" in card
    wrong = CliRunner().invoke(app, ["data", "builtin", "methanol"])
    assert "did you mean" in str(wrong.exception)
