"""Killed again and again, conversion, training and rounds lose nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parent.parent / "benchmarks" / "kills.py"


@pytest.mark.slow
@pytest.mark.parametrize("what", ["convert", "train", "rounds"])
def test_kills_at_random_moments_change_nothing(tmp_path, what):
    command = [sys.executable, str(BENCHMARK), "--what", what, "--kills", "4", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    for result in json.loads(done.stdout.splitlines()[-1]).values():
        assert result["kills"] >= 1
