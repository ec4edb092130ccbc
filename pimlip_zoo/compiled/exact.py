"""Constants that stay float64 however often a model changes its precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class ExactBuffers(nn.Module):
    """A module whose float64 buffers survive ``.to(dtype)``; its forward casts them where it uses them.

    A model cast to float32 and back to float64 would otherwise carry coefficients wrong by 1e-8.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        own = dict(self.named_buffers(recurse=False, remove_duplicate=False))
        # All of to(), double(), cuda() of a module above end here, and nothing public stands between.
        super()._apply(fn, recurse)
        for name, buffer in own.items():
            moved: Tensor = getattr(self, name)
            if buffer.dtype == torch.float64 and moved.dtype != torch.float64:
                setattr(self, name, buffer.to(moved.device))
        return self
