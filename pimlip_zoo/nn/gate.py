"""The gated nonlinearity: scalars through an activation, everything else multiplied by a scalar of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from e3nn import o3
from torch import Tensor, nn

from pimlip_zoo.compiled.kernels.gate import FUNCTIONS, GatedScalar, GateForm, GateOperation, cpu_gate
from pimlip_zoo.compiled.sweeps.block import Call, NotCovered, blocks
from pimlip_zoo.compiled.sweeps.operation import Bound, OperationBlock
from pimlip_zoo.nn.mlp import ScaledActivation

_BY_PARITY = {1: "silu", -1: "tanh"}


class Gate(nn.Module):
    """Weiler et al., 3D Steerable CNNs, NeurIPS 2018; activations normalised as in e3nn's ``Gate``.

    The input holds the output's scalars, one gate (times C channels) for each irrep with l > 0, and those irreps.
    In the channels-last layout: (rows, K_in, C) -> (rows, K_out, C).

    Args:
        irreps_out: components of the output, each irrep once, sorted; a multiplicity multiplies the channels, and
            there are as many gates.
        gate_irrep: the scalar that gates; ``0o`` where no even scalar can be made.
        activations: by parity of the scalar; even functions may not act on odd scalars.
        gate_activation: that of the gates; None: as of a scalar of their parity.
    """

    def __init__(
        self,
        irreps_out: o3.Irreps,
        gate_irrep: o3.Irrep | str = "0e",
        activations: Mapping[int, str] | None = None,
        gate_activation: str | None = None,
    ) -> None:
        super().__init__()
        activations = activations or _BY_PARITY
        self.irreps_out = o3.Irreps(irreps_out)
        gate_irrep = o3.Irrep(gate_irrep)
        scalars = [(int(n), irrep) for n, irrep in self.irreps_out if irrep.l == 0]
        gated = [(int(n), irrep) for n, irrep in self.irreps_out if irrep.l > 0]
        blocks = {irrep: n for n, irrep in scalars}
        own = blocks.get(gate_irrep, 0)
        if gated:
            blocks[gate_irrep] = own + sum(n for n, _ in gated)
        scalar_part = o3.Irreps([(n, irrep) for irrep, n in sorted(blocks.items(), key=lambda item: item[0])])
        self.irreps_in = scalar_part + o3.Irreps(gated)
        # Where things lie: within a scalar irrep the output's scalar comes first, the gates after it.
        start, positions = 0, {}
        for n, irrep in scalar_part:
            positions[irrep] = start
            start += n
        self._scalar_positions = [positions[irrep] for _, irrep in scalars]
        self._scalar_counts = [n for n, _ in scalars]
        self._first_gate = positions.get(gate_irrep, 0) + own
        self._num_gates = sum(n for n, _ in gated)
        self._first_gated = start
        self.scalar_activations = nn.ModuleList(
            ScaledActivation(activations[irrep.p]) for _, irrep in scalars
        )
        of_gates = gate_activation or activations[gate_irrep.p]
        self.gate_activation = ScaledActivation(of_gates)
        self.form = self._kernel_form(scalars, gated, of_gates, activations)
        expand: list[int] = []
        gate = 0
        for n, irrep in gated:
            expand += [*range(gate, gate + n)] * irrep.dim
            gate += n
        self.register_buffer("_expand", torch.tensor(expand, dtype=torch.int64), persistent=False)

    def _kernel_form(
        self,
        scalars: list[tuple[int, o3.Irrep]],
        gated: list[tuple[int, o3.Irrep]],
        of_gates: str,
        activations: Mapping[int, str],
    ) -> GateForm | None:
        """What the compiled gate has to know; None where it does not know an activation."""
        if any(name not in FUNCTIONS for name in [*(activations[ir.p] for _, ir in scalars), of_gates]):
            return None
        entries, target = [], 0
        for (n, irrep), position in zip(scalars, self._scalar_positions, strict=True):
            name = activations[irrep.p]
            entries.append(GatedScalar(name, ScaledActivation(name).constant, position, target, width=n))
            target += n
        name, begin, gate = of_gates, self._first_gated, self._first_gate
        constant = self.gate_activation.constant
        for n, irrep in gated:
            components = tuple(range(begin, begin + n * irrep.dim, n))
            entries.append(GatedScalar(name, constant, gate, target, components, n))
            begin, target, gate = begin + n * irrep.dim, target + n * irrep.dim, gate + n
        return GateForm(int(self.irreps_in.dim), int(self.irreps_out.dim), tuple(entries))

    def forward(self, x: Tensor) -> Tensor:
        """(rows, K_in, C) -> (rows, K_out, C)."""
        parts: list[Tensor] = []
        index = 0
        for act in self.scalar_activations:
            position, count = self._scalar_positions[index], self._scalar_counts[index]
            parts.append(act(x[:, position : position + count]))
            index += 1  # noqa: SIM113  (TorchScript does not enumerate a ModuleList)
        if self._num_gates > 0:
            gates = self.gate_activation(x[:, self._first_gate : self._first_gate + self._num_gates])
            parts.append(x[:, self._first_gated :] * gates[:, self._expand])
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


@blocks(Gate)
class GateBlock(OperationBlock):
    """x -> gated x."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        module: Gate = call.target
        if module.form is None:
            raise NotCovered
        self.form = module.form

    def bind(self, *args: Any) -> Bound:
        x = args[0]
        return GateOperation(cpu_gate(self.form, int(x.shape[2]), self.call.dtype)), (x,)
