"""Finds out in which models an edge and its opposite can share what is made from their length."""

from __future__ import annotations

from collections.abc import Sequence

from pimlip_zoo.compiled.sweeps.trace import Step, Trace


def share_radial(trace: Trace) -> None:
    """Let the embeddings of a trace make radial functions once for each pair of opposite edges where that is possible.

    It is where nothing else is done with them than perceptrons, row by row, whose results weigh convolutions.
    """
    for step in trace.steps:
        if step.block is not None and step.block.shared is not None and trace.result not in step.results:
            step.block.shared = _weighs_convolutions(trace.steps, step.results[0])


def _weighs_convolutions(steps: Sequence[Step], radial: int) -> bool:
    """Whether convolutions are weighed by what perceptrons make of a value, and nothing else is done with it."""
    derived, found = {radial}, False
    for step in steps:
        entering = derived.intersection(step.inputs)
        if not entering:
            continue
        block = step.block
        if block is None:
            return False
        if block.by_row:
            derived.update(step.results)
        elif entering == {step.inputs[-1]} and block.call.active[-1] == block.weighed_by:
            found = True
        else:
            return False
    return found
