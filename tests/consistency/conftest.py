"""The baselines that live outside the package are known here, and nowhere else."""

import importlib
import sys
from pathlib import Path

import pytest

from pimlip_zoo.consistency.displacements import DISPLACEMENTS
from pimlip_zoo.consistency.residuals import RESIDUALS

BASELINES = Path(__file__).parents[2] / "benchmarks" / "weak" / "baselines" / "src"


@pytest.fixture(scope="session")
def _baselines():
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BASELINES))
        for registry, module in ((RESIDUALS, "residuals"), (DISPLACEMENTS, "displacements")):
            own = dict(registry.all())
            patch.setattr(registry, "_items", dict(registry._items))
            sys.modules.pop(f"pimlip_zoo_baselines.{module}", None)
            importlib.import_module(f"pimlip_zoo_baselines.{module}")
            found.append({name: registry._items[name] for name in registry._items if name not in own})
    return found


@pytest.fixture(autouse=True)
def _registered(_baselines, monkeypatch):
    for registry, items in zip((RESIDUALS, DISPLACEMENTS), _baselines, strict=True):
        monkeypatch.setattr(registry, "_items", {**registry._items, **items})
