"""Which steps of a model are compiled, and which are left to torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from pimlip_zoo.compiled.sweeps.fallback import AutogradBlock
from pimlip_zoo.compiled.sweeps.trace import Step, trace_model

How = Literal["block", "autograd", "plain"]


@dataclass(frozen=True)
class StepInfo:
    """One step of a traced model, for people."""

    name: str
    """The module's name in the model, or the function."""
    kind: str
    """The module's class, or ``function``."""
    how: How
    """``block``: the four sweeps are kernels or products of matrices. ``autograd``: torch differentiates it, more
    slowly. ``plain``: called as it is, since neither geometry nor parameters enter."""
    block: str
    """The class of its block; empty where it is called as it is."""


def described(model: nn.Module) -> list[StepInfo] | None:
    """The steps of ``model(graph, vectors)`` in their order.

    Args:
        model: an architecture.

    Returns:
        None where the model is not traced: it has no blocks, or its code depends on what tensors hold. It then runs by
        autograd as a whole.
    """
    trace = trace_model(model)
    if trace is None:
        return None
    names = {module: name for name, module in model.named_modules()}
    return [_described(step, names) for step in trace.steps]


def _described(step: Step, names: dict[nn.Module, str]) -> StepInfo:
    target: Any = step.call.target
    original = target if isinstance(target, nn.Module) else None
    name = names.get(original, "") if original is not None else getattr(target, "__name__", str(target))
    kind = "function" if original is None else type(original).__name__
    if step.block is None:
        return StepInfo(name, kind, "plain", "")
    how: How = "autograd" if isinstance(step.block, AutogradBlock) else "block"
    return StepInfo(name, kind, how, type(step.block).__name__)
