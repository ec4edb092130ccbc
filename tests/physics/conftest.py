"""Measuring, in one call."""

import json

import pytest

from pimlip_zoo.physics.examine import Examination, Subject, select


@pytest.fixture(scope="session")
def measured():
    def measure(calculator, atoms, *names, settings=(), kind=None, end=None, **options):
        examination = Examination(
            calculator, [Subject("it", atoms, kind, end)], select(names, settings), **options
        )
        result = examination.run()
        json.dumps(result, allow_nan=False)
        return result["structures"]["it"]["properties"]

    return measure


@pytest.fixture(scope="session")
def value():
    def get(result, name):
        kind, entry = name.split(".")
        return result[kind]["values"][entry]["value"]

    return get
