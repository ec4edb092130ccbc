"""Weak labels: energies and forces from cheap physics, and the ways of learning from them.

What another package needs to add a recipe or a calculator is here.
"""

from pimlip_zoo.weak_labels.calculators import CalculatorOptions, calculator
from pimlip_zoo.weak_labels.recipe import Recipe, RecipeOptions, StageOptions, StressOptions, recipe

__all__ = [
    "CalculatorOptions",
    "Recipe",
    "RecipeOptions",
    "StageOptions",
    "StressOptions",
    "calculator",
    "recipe",
]
