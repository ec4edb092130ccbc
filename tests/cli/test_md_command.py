"""``pimlip-zoo md`` runs what it is told, says how it went, and leaves files to go on from."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.io import read, write
from typer.testing import CliRunner

import pimlip_zoo
from pimlip_zoo.cli import app
from pimlip_zoo.deploy.ase import PimlipCalculator
from pimlip_zoo.deploy.committee import CommitteeCalculator
from pimlip_zoo.deploy.structure import holds_several, read_structure
from pimlip_zoo.errors import InputError
from pimlip_zoo.models.nequip import NequIP, NequIPConfig
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.training.checkpoint import KEY, describe

ETHANOL = "builtin:ethanol-gfn2/test_300K@0"


def save_run(folder, species=("H", "C", "O"), seed=0):
    """A run folder with a small potential that has not been trained, and is soft because of that."""
    torch.manual_seed(seed)
    config = NequIPConfig(num_layers=1, l_max=1, channels=4, cutoff=3.5, avg_num_neighbors=8.0)
    potential = Potential(NequIP(config, species), scale=0.01).set_dtype(torch.float64)
    weights = {f"potential.{name}": value for name, value in potential.state_dict().items()}
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({KEY: describe(potential), "state_dict": weights}, folder / "checkpoints" / "best.ckpt")
    return folder


@pytest.fixture
def run(tmp_path):
    return save_run(tmp_path / "run")


def md(*arguments):
    return CliRunner().invoke(app, ["md", *map(str, arguments)])


def test_a_simulation_is_run_reported_and_written(run):
    result = md(run, "--structure", ETHANOL, "--ensemble", "nve", "--steps", 30, "--temperature", 5)
    assert result.exit_code == 0, result.output
    assert "C2H6O, 9 atoms, NVE at 5 K" in result.output
    assert "stable for 15 fs" in result.output
    assert "ns/day" in result.output
    folder = run / "md-1"
    frames = read(folder / "trajectory.extxyz", ":")
    assert len(frames) == 4
    np.testing.assert_allclose(frames[0].positions, read_structure(ETHANOL).positions, atol=1e-8)
    check = frames[-1].copy()
    check.calc = pimlip_zoo.calculator(run)
    assert frames[-1].get_potential_energy() == pytest.approx(check.get_potential_energy(), abs=1e-7)
    assert json.loads((folder / "result.json").read_text())["stable"]


def test_a_second_simulation_gets_a_folder_of_its_own_and_can_go_on_from_the_first(run):
    options = ("--steps", 10, "--temperature", 5, "--ensemble", "nve")
    assert md(run, "--structure", ETHANOL, *options).exit_code == 0
    result = md(run, "--structure", run / "md-1" / "final.extxyz", "--keep-velocities", *options)
    assert result.exit_code == 0, result.output
    assert (run / "md-2" / "log.csv").exists()
    ends = read(run / "md-1" / "final.extxyz"), read(run / "md-2" / "trajectory.extxyz", 0)
    np.testing.assert_allclose(ends[0].get_momenta(), ends[1].get_momenta(), atol=1e-8)


def test_an_unstable_simulation_exits_with_1_and_says_why(run, tmp_path):
    write(tmp_path / "close.xyz", Atoms("OH", positions=[[0, 0, 0], [0.3, 0, 0]]))
    result = md(run, "--structure", tmp_path / "close.xyz", "--steps", 10)
    assert result.exit_code == 1
    assert "unstable after 0 fs" in result.output
    assert "came as close as 0.30 Å" in result.output


def test_a_crystal_is_simulated_at_constant_pressure_with_one_evaluation_a_step(tmp_path, monkeypatch):
    run = save_run(tmp_path / "run", species=("Cu",))
    write(tmp_path / "POSCAR", bulk("Cu", "fcc", a=3.6, cubic=True))
    calls = []
    forward = Potential.forward
    monkeypatch.setattr(Potential, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    options = ("--ensemble", "npt", "--steps", 20, "--temperature", 20, "--timestep", 2, "--pressure", "1bar")
    result = md(run, "--structure", tmp_path / "POSCAR", *options)
    assert result.exit_code == 0, result.output
    assert "NPT at 20 K and 0.0001 GPa (1 bar), 20 steps" in result.output
    with (run / "md-1" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(np.isfinite(float(row["pressure_GPa"])) for row in rows)
    assert float(rows[0]["volume_A3"]) != float(rows[-1]["volume_A3"])
    assert len(calls) <= 2 * 20 + 2


def test_a_committee_logs_its_spread(run, tmp_path):
    other = save_run(tmp_path / "other", seed=1)
    result = md(run, other, "--structure", ETHANOL, "--steps", 5, "--temperature", 5)
    assert result.exit_code == 0, result.output
    with (run / "md-1" / "log.csv").open() as file:
        spread = [float(row["largest_force_std_eV_A"]) for row in csv.DictReader(file)]
    assert all(value > 0 for value in spread)
    committee = pimlip_zoo.calculator(run, other)
    assert isinstance(committee, CommitteeCalculator)
    assert isinstance(pimlip_zoo.calculator(run), PimlipCalculator)


def test_sigterm_ends_after_the_step_and_says_how_to_go_on(run):
    command = [sys.executable, "-c", "from pimlip_zoo.cli import main; main()", "md", str(run)]
    options = ["--structure", ETHANOL, "--steps", "1000000", "--interval", "5", "--temperature", "5"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    log = run / "md-1" / "log.csv"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_text().count("\n") > 2):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "--keep-velocities" in output
    result = json.loads((run / "md-1" / "result.json").read_text())
    assert result["interrupted"]
    assert read(run / "md-1" / "final.extxyz").info["step"] == result["steps"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--structure", "nowhere.xyz"), "no such file"),
        (("--structure", "builtin:ethanol-gfn2/train@5000"), "there are 1000"),
        (("--structure", "builtin:ethanol-gfn2/tset_300K"), "did you mean test_300K"),
        (("--structure", "builtin:cual-emt@0"), "does not know"),
        (("--structure", ETHANOL, "--ensemble", "npt"), "periodic in all three"),
        (("--structure", ETHANOL, "--steps", "-1"), "steps"),
        (("--structure", ETHANOL, "--pressure", "0"), "--pressure: nvt has none (--ensemble npt"),
        (("--structure", ETHANOL, "--ensemble", "nve", "--pressure", "5"), "--pressure: nve has none"),
        (("--structure", ETHANOL, "--ensemble", "nve", "--friction", "0.5"), "--friction: nve has none"),
        (("--structure", ETHANOL, "--ensemble", "npt", "--friction", "0.5"), "--friction: npt has none"),
        (("--structure", ETHANOL, "--device", "abacus"), "--device"),
        (("--structure", ETHANOL, "--keep-velocities"), "no velocities"),
    ],
)
def test_mistakes_are_answered_in_one_line_and_leave_no_folder(run, arguments, message):
    result = md(run, *arguments)
    assert isinstance(result.exception, InputError)
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)
    assert not (run / "md-1").exists()


def test_an_unreadable_structure_or_run_is_named(run, tmp_path):
    (tmp_path / "broken.extxyz").write_text("3\nLattice=\nC 0 0\n")
    for arguments, name in (
        ((run, "--structure", tmp_path / "broken.extxyz"), "broken.extxyz"),
        ((tmp_path / "missing", "--structure", ETHANOL), "missing"),
    ):
        result = md(*arguments)
        assert isinstance(result.exception, InputError)
        assert name in str(result.exception)


def test_an_index_picks_the_frame_and_the_last_is_the_default(tmp_path):
    write(tmp_path / "a@1.xyz", [Atoms("H"), Atoms("C"), Atoms("O")])
    assert str(read_structure(str(tmp_path / "a@1.xyz")).symbols) == "O"
    assert str(read_structure(f"{tmp_path}/a@1.xyz@0").symbols) == "H"
    assert str(read_structure(f"{tmp_path}/a@1.xyz@-2").symbols) == "C"
    with pytest.raises(InputError, match="no such frame"):
        read_structure(f"{tmp_path}/a@1.xyz@3")
    (tmp_path / "README.md").write_text("# No structure\n")
    with pytest.raises(InputError, match="there is no structure in it"):
        read_structure(str(tmp_path / "README.md"))


@pytest.mark.parametrize("members", [1, 2])
def test_the_file_with_an_unknown_element_is_named_and_nothing_is_written(tmp_path, members):
    runs = [save_run(tmp_path / f"run-{k}", seed=k) for k in range(members)]
    write(tmp_path / "salt.xyz", Atoms("NaClCH", [[0, 0, 0], [2.4, 0, 0], [0, 3, 0], [0, 4, 0]]))
    before = sorted(tmp_path.rglob("*"))
    result = md(*runs, "--structure", tmp_path / "salt.xyz")
    assert isinstance(result.exception, InputError)
    message = f"{tmp_path / 'salt.xyz'}: the model does not know Na, Cl (it was trained on H, C, O)"
    assert str(result.exception) == message
    assert result.output == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_it_is_said_when_a_file_has_more_than_the_structure_that_is_taken(run, tmp_path):
    atoms = read_structure(ETHANOL)
    write(tmp_path / "one.xyz", atoms)
    write(tmp_path / "two.xyz", [atoms, atoms])
    assert holds_several(str(tmp_path / "two.xyz"))
    assert not holds_several(str(tmp_path / "one.xyz"))
    assert not holds_several(f"{tmp_path}/two.xyz@0")
    assert not holds_several(ETHANOL)
    result = md(run, "--structure", tmp_path / "two.xyz", "--steps", 2)
    assert "from the last structure of" in result.output
