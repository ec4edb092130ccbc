"""A structure that a calculator cannot do: kept with its reason, it does not stop the others."""

from __future__ import annotations


class CalculationError(RuntimeError):
    """A calculation that ended without a result that can be used, such as an SCF that did not converge."""
