"""What the page on extending shows runs as it stands there."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pimlip_zoo.datasets.builtin import load_builtin
from pimlip_zoo.datasets.neighbours import frame_to_sample
from pimlip_zoo.graph import Predictions, collate
from pimlip_zoo.losses.base import LOSSES, Evaluated
from pimlip_zoo.weak_labels.calculators import CALCULATORS
from pimlip_zoo.weak_labels.recipe import RECIPES

PAGE = Path(__file__).parents[1] / "docs" / "guide" / "extending.md"


@pytest.fixture
def shown(monkeypatch):
    """The names that the code of the page defines; what it registers is forgotten afterwards."""
    for registry in (LOSSES, RECIPES, CALCULATORS):
        registry.all()
        monkeypatch.setattr(registry, "_items", dict(registry._items))
    names = {"replace": replace, "__name__": "page"}
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL):
        exec(code, names)
    return names


def test_the_loss_of_the_page_is_registered_and_ignores_missing_labels(shown):
    assert LOSSES.get("largest_force").make is shown["LargestForce"]
    frames = load_builtin("ethanol-gfn2")[:2]
    batch = collate(
        [frame_to_sample(f, ("H", "C", "O"), 3.0) for f in (frames[0], replace(frames[1], forces=None))]
    )
    forces = batch.labels.forces.nan_to_num(7.0)
    forces[3, 1] += 2.0
    forces.requires_grad_()
    empty = torch.zeros(2)
    value = LOSSES.get("largest_force").make(weight=1.0)(
        Evaluated(batch, Predictions(empty, forces, empty, empty))
    )
    assert value.mean().item() == pytest.approx(4.0)
    value.mean().backward()
    assert forces.grad[3, 1].item() == pytest.approx(4.0)
    assert forces.grad.count_nonzero() == 1


def test_the_recipe_and_the_calculator_of_the_page_are_registered(shown):
    assert RECIPES.get("warm_start").description.startswith("Learn the cheap labels")
    assert CALCULATORS.get("springs").make is shown["springs"]
