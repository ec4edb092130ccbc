"""What tests need of the machine, said by marks."""

from __future__ import annotations

from functools import cache

import pytest

from pimlip_zoo.compiled.kernels import available_backends


@cache
def _without_compiler() -> str | None:
    """Why kernels cannot be compiled here; None where they can."""
    said = available_backends()["cpu"]
    return None if said.startswith("available") else said


def pytest_addoption(parser):
    parser.addoption(
        "--mutations", type=int, help="damaged files of each format, in place of the tests' own number"
    )
    parser.addoption("--mutation-seed", type=int, default=0, help="of the damage")


def pytest_runtest_setup(item):
    if item.get_closest_marker("compiler") and (reason := _without_compiler()):
        pytest.skip(reason)
