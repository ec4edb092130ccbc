"""Forces from a head of their own, instead of as a derivative."""

from __future__ import annotations

from e3nn import o3
from torch import Tensor, nn

from pimlip_zoo.errors import InputError
from pimlip_zoo.nn.linear import EquivariantLinear, irrep_slices

__all__ = ["DirectForces"]


class DirectForces(nn.Module):
    """Atomic features -> force vectors: an equivariant linear map to one vector per atom.

    Args:
        irreps: components of the features, multiplicities multiply the channels; must hold polar vectors, 1o.
        channels: C.
    """

    def __init__(self, irreps: o3.Irreps, channels: int) -> None:
        super().__init__()
        if o3.Irrep("1o") not in o3.Irreps(irreps):
            raise InputError(
                f"a direct force head needs vectors (1o), the features are {irreps}",
                key="force_head",
                mend="give l_max >= 1, or force_head conservative",
            )
        self._start, copies = next(
            (start, copies) for irrep, start, copies in irrep_slices(irreps) if irrep == o3.Irrep("1o")
        )
        self._end = self._start + 3 * copies
        self.linear = EquivariantLinear(o3.Irreps([(copies, "1o")]), o3.Irreps("1o"), channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(N, K, C) -> (N, 3), components x, y, z."""
        vectors: Tensor = self.linear(features[:, self._start : self._end]).squeeze(-1)
        return vectors
