"""The gated nonlinearity: scalars through an activation, everything else multiplied by a scalar of its own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from e3nn import o3
from torch import Tensor, nn

from pimlip_zoo.compiled.kernels.gate import FUNCTIONS, GatedScalar, GateForm
from pimlip_zoo.nn.mlp import ScaledActivation

__all__ = ["Gate"]

_BY_PARITY = {1: "silu", -1: "tanh"}


class Gate(nn.Module):
    """Weiler et al., 3D Steerable CNNs, NeurIPS 2018; activations normalised as in e3nn's ``Gate``.

    The input holds the output's scalars, one gate (times C channels) for each irrep with l > 0, and those irreps.
    In the channels-last layout: (rows, K_in, C) -> (rows, K_out, C).

    Args:
        irreps_out: components of the output, each irrep once, sorted.
        gate_irrep: the scalar that gates; ``0o`` where no even scalar can be made.
        activations: by parity of the scalar; even functions may not act on odd scalars.
    """

    def __init__(
        self,
        irreps_out: o3.Irreps,
        gate_irrep: o3.Irrep | str = "0e",
        activations: Mapping[int, str] | None = None,
    ) -> None:
        super().__init__()
        activations = activations or _BY_PARITY
        self.irreps_out = o3.Irreps(irreps_out)
        gate_irrep = o3.Irrep(gate_irrep)
        scalars = [irrep for _, irrep in self.irreps_out if irrep.l == 0]
        gated = [irrep for _, irrep in self.irreps_out if irrep.l > 0]
        blocks = dict.fromkeys(scalars, 1)
        if gated:
            blocks[gate_irrep] = blocks.get(gate_irrep, 0) + len(gated)
        scalar_part = o3.Irreps([(n, irrep) for irrep, n in sorted(blocks.items(), key=lambda item: item[0])])
        self.irreps_in = scalar_part + o3.Irreps([(1, irrep) for irrep in gated])
        # Where things lie: within a scalar irrep the output's scalar comes first, the gates after it.
        start, positions = 0, {}
        for n, irrep in scalar_part:
            positions[irrep] = start
            start += n
        self._scalar_positions = [positions[irrep] for irrep in scalars]
        self._first_gate = positions.get(gate_irrep, 0) + (1 if gate_irrep in scalars else 0)
        self._num_gates = len(gated)
        self._first_gated = start
        self._gated_dims = [irrep.dim for irrep in gated]
        self.scalar_activations = nn.ModuleList(ScaledActivation(activations[irrep.p]) for irrep in scalars)
        self.gate_activation = ScaledActivation(activations[gate_irrep.p])
        self.form = self._kernel_form(scalars, gated, gate_irrep, activations)
        expand = [index for index, dim in enumerate(self._gated_dims) for _ in range(dim)]
        self.register_buffer("_expand", torch.tensor(expand, dtype=torch.int64), persistent=False)

    def _kernel_form(
        self,
        scalars: list[o3.Irrep],
        gated: list[o3.Irrep],
        gate_irrep: o3.Irrep,
        activations: Mapping[int, str],
    ) -> GateForm | None:
        """What the compiled gate has to know; None where it does not know an activation."""
        if any(activations[irrep.p] not in FUNCTIONS for irrep in [*scalars, gate_irrep]):
            return None
        entries = []
        for number, irrep in enumerate(scalars):
            name = activations[irrep.p]
            constant = ScaledActivation(name).constant
            entries.append(GatedScalar(name, constant, self._scalar_positions[number], number))
        name, begin = activations[gate_irrep.p], self._first_gated
        for number, irrep in enumerate(gated):
            components = tuple(range(begin, begin + irrep.dim))
            target = len(scalars) + begin - self._first_gated
            constant = self.gate_activation.constant
            entries.append(GatedScalar(name, constant, self._first_gate + number, target, components))
            begin += irrep.dim
        return GateForm(int(self.irreps_in.dim), int(self.irreps_out.dim), tuple(entries))

    def forward(self, x: Tensor) -> Tensor:
        """(rows, K_in, C) -> (rows, K_out, C)."""
        parts: list[Tensor] = []
        index = 0
        for act in self.scalar_activations:
            position = self._scalar_positions[index]
            parts.append(act(x[:, position : position + 1]))
            index += 1  # noqa: SIM113  (TorchScript does not enumerate a ModuleList)
        if self._num_gates > 0:
            gates = self.gate_activation(x[:, self._first_gate : self._first_gate + self._num_gates])
            parts.append(x[:, self._first_gated :] * gates[:, self._expand])
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
