"""The commands of ``docs/guide/lammps.md`` work as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from toys import SPECIES

from pimlip_zoo.cli.export import ExportFormat, export_potential
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.registry import get_model

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "lammps.md"


@pytest.mark.parametrize(
    ("block", "file_format"),
    [(0, "torchscript"), pytest.param(1, "native", marks=pytest.mark.slow)],
    indirect=["file_format"],
)
def test_from_a_run_to_a_simulation_in_five_commands(block, tmp_path, plugin):
    from ase.build import molecule

    commands = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)[block].strip().splitlines()
    assert len(commands) == 5
    assert commands[0].startswith("pip install")  # what is tested is installed already
    info = get_model("nequip")
    config = info.configure("small", num_layers=2, channels=4, cutoff=4.0, avg_num_neighbors=8.0)
    run = tmp_path / "runs" / "ethanol" / "checkpoints"
    run.mkdir(parents=True)
    export_potential(
        Potential(info.model(config, SPECIES)), run / "best.ckpt", format=ExportFormat.checkpoint
    )
    molecule("CH3CH2OH").write(tmp_path / "start.xyz")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-ec", "\n".join(commands[1:])],
        cwd=tmp_path,
        env=environment | ({"PIMLIP_ZOO_KERNELS": "reference"} if block == 0 else {}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert str(plugin) in done.stdout
    frames = (tmp_path / "md" / "trajectory.dump").read_text().split("ITEM: TIMESTEP")
    assert len(frames) - 1 == 11  # steps 0, 20, ..., 200
    rows = [
        line.split() for line in frames[-1].splitlines() if line[:1].isdigit() and len(line.split()) == 11
    ]
    assert len(rows) == 9
    assert np.isfinite([float(word) for row in rows for word in row[2:]]).all()
    assert (tmp_path / "md" / "final.restart").exists()
