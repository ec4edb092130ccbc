"""Muon: steps along orthogonal matrices for linear maps, Adam for everything else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

NARROWEST = 4
"""Maps to or from fewer channels are left to Adam: they are vectors rather than matrices."""


def linear_maps(module: nn.Module) -> dict[Tensor, int]:
    """The parameters of a module that are matrices applied to features, and the axis of each along which outputs lie.

    Embeddings, coefficients of tensor products and biases are not among them. A species-dependent map
    (in, species, out) counts as one matrix per species. A module says ``weights_are_maps = True`` of its ``weights``
    (in, out); those of ``torch.nn.Linear`` are (out, in).
    """
    found: dict[Tensor, int] = {}
    for part in module.modules():
        if getattr(part, "weights_are_maps", False):
            found |= dict.fromkeys(cast("Iterable[Tensor]", part.weights), -1)
        elif isinstance(part, nn.Linear):
            found[part.weight] = 0
    return {w: axis for w, axis in found.items() if min(w.shape[0], w.shape[-1]) >= NARROWEST}


EPS = 1e-10
"""Size of entries of the momentum below which a step is damped."""
LEAST_OUTPUT = 1e-3
"""Of the usual size of a step; outputs that move less, such as those that symmetry keeps at zero, are left behind."""


class Kind(NamedTuple):
    """Of matrices that are orthogonalised together."""

    shape: torch.Size
    outputs: int
    """Their axis in a stack of matrices, 1 or 2."""
    dtype: torch.dtype
    device: torch.device


class Muon(torch.optim.AdamW):
    """AdamW, but matrices move along their orthogonalised momentum (Jordan et al., 2024, "Muon").

    A step of a matrix is the orthogonal factor of the polar decomposition of its momentum, found by a few
    Newton-Schulz iterations, and scaled so that its entries are of size ``lr`` (root mean square) as those of Adam's
    first step are; the same learning rate then fits both.

    ``torch.optim.Muon`` takes matrices only, one at a time and in bfloat16; here matrices of one shape go together,
    which for the many small ones of an equivariant model is most of the cost.

    Args:
        params: parameters or groups of them, as for AdamW.
        matrices: those of them that are matrices, and the axis of their outputs, see :func:`linear_maps`.
        momentum: of the matrices.
        equal_outputs: outputs of a matrix take steps of one size, by a running mean of the squares of their steps (Li
            et al., 2025, "NorMuon"); the step as a whole keeps its size.
        options: of AdamW, for all other parameters; ``weight_decay`` acts on both.
    """

    def __init__(
        self,
        params: Iterable[Any],
        matrices: Mapping[Tensor, int],
        *,
        momentum: float = 0.95,
        equal_outputs: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(params, **options)
        self._equal_outputs = equal_outputs
        self._outputs = {id(matrix): axis for matrix, axis in matrices.items()}
        self._momentum = momentum

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; see torch.optim.Optimizer."""
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        held: list[tuple[Tensor, Tensor]] = []
        for group in self.param_groups:
            members = [p for p in group["params"] if id(p) in self._outputs and p.grad is not None]
            if members:
                self._move(members, float(group["lr"]), group["weight_decay"])
            held += [(p, p.grad) for p in members if p.grad is not None]
        for parameter, _ in held:
            parameter.grad = None  # AdamW passes over what has no gradient
        super().step()
        for parameter, gradient in held:
            parameter.grad = gradient
        return result

    def _move(self, matrices: Sequence[Tensor], lr: float, weight_decay: float) -> None:
        gradients = [p.grad for p in matrices if p.grad is not None]
        for p in matrices:
            if "momentum" not in self.state[p]:
                # AdamW looks for a step in every state that it loads.
                self.state[p].update(step=torch.zeros(()), momentum=torch.zeros_like(p))
        momenta = [self.state[p]["momentum"] for p in matrices]
        # One call for all matrices, as in torch.optim, where there is no public name for it either.
        torch._foreach_lerp_(momenta, gradients, 1.0 - self._momentum)
        # Nesterov's: a step ahead along the gradient.
        ahead = [g.lerp(m, self._momentum) for g, m in zip(gradients, momenta, strict=True)]
        alike: dict[Kind, list[tuple[Tensor, Tensor]]] = {}
        for parameter, update in zip(matrices, ahead, strict=True):
            wide, outputs = _stack(update, self._outputs[id(parameter)])
            kind = Kind(wide.shape[1:], outputs, wide.dtype, wide.device)
            alike.setdefault(kind, []).append((parameter, wide))
        for kind, together in alike.items():
            parameters = [parameter for parameter, _ in together]
            polar = orthogonalised(torch.cat([wide for _, wide in together])) * math.sqrt(max(kind.shape))
            if self._equal_outputs:
                polar = self._equalised(parameters, polar, kind.outputs)
            steps = polar.split([len(wide) for _, wide in together])
            for parameter, step in zip(parameters, steps, strict=True):
                if weight_decay:
                    parameter.mul_(1.0 - lr * weight_decay)
                parameter.add_(_unstack(step, parameter), alpha=-lr)

    def _equalised(self, parameters: Sequence[Tensor], steps: Tensor, outputs: int) -> Tensor:
        """Steps (B, m, n) of some parameters, each output (along axis 1 or 2) divided by its usual size."""
        squares = steps.square().mean(dim=3 - outputs)
        counts = [p.shape[1] if p.dim() == 3 else 1 for p in parameters]
        for parameter, square in zip(parameters, squares.split(counts), strict=True):
            state = self.state[parameter]
            state["squares"] = torch.lerp(state["squares"], square, 0.05) if "squares" in state else square
        usual = torch.cat([self.state[p]["squares"] for p in parameters]).sqrt().unsqueeze(3 - outputs)
        equal = steps / (usual + LEAST_OUTPUT)
        return equal * (steps.norm(dim=(1, 2), keepdim=True) / (equal.norm(dim=(1, 2), keepdim=True) + EPS))


def orthogonalised(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Roughly the orthogonal polar factors of wide matrices (B, m, n), m <= n: singular values of 0.7 to 1.2.

    The quintic Newton-Schulz iteration with the coefficients of Jordan et al., which trade exactness for speed.
    Matrices whose entries are far below ``EPS`` stay near zero, as steps of Adam do with its epsilon.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    # Components that symmetry keeps at zero have gradients of rounding alone, down to 1e-24, whose squares vanish.
    least = EPS * math.sqrt(matrices.shape[1] * matrices.shape[2])
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + least)
    for _ in range(iterations):
        # Sums within the products: half the calls, which for small matrices is a quarter of the time.
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _stack(update: Tensor, outputs: int) -> tuple[Tensor, int]:
    """(in, out), (out, in) or (in, species, out) as wide matrices (B, m, n), and the axis of the outputs: 1 or 2."""
    stack = update.transpose(0, 1) if update.dim() == 3 else update.unsqueeze(0)
    axis = 2 if outputs == -1 else 1
    return (stack.mT, 3 - axis) if stack.shape[1] > stack.shape[2] else (stack, axis)


def _unstack(stack: Tensor, parameter: Tensor) -> Tensor:
    if parameter.shape[0] > parameter.shape[-1]:
        stack = stack.mT
    return stack.transpose(0, 1) if parameter.dim() == 3 else stack.squeeze(0)
