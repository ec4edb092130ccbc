"""Memory that one step frees is there for the next."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import torch
from pimlip_zoo.compiled.kernels.memory import keep_freed_memory

def step():
    arrays = [torch.ones(2**22) for _ in range(8)]

keep_freed_memory()
for _ in range(6):  # where arrays come to lie depends on what else was allocated: after some steps all find a place
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**environment: str) -> int:
    """Pages that a later step of 128 MiB touches for the first time."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**plain, **environment})
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_a_later_step_finds_its_memory_unless_the_environment_says_otherwise():
    kept, returned = faults(), faults(MALLOC_TRIM_THRESHOLD_="131072")
    assert kept < 100
    assert returned > kept + 20  # of 2 MiB where the system has huge pages
