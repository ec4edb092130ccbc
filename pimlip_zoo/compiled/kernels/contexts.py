"""Contexts of a caller that would change what a potential computes, or keep it from differentiating."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def plain_torch() -> Iterator[None]:
    """Leave ``torch.inference_mode``, autocast and another default device than the CPU for as long as this lasts.

    Forces are derivatives, which inference mode forbids; autocast multiplies in half precision; and tensors made of
    NumPy's arrays belong on the CPU first. Also a decorator: ``@plain_torch()``.
    """
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(mode=False))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield
