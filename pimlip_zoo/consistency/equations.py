"""How far a surface is from agreeing with itself: the mathematics of the weakly supervised losses.

Energies and forces of one potential at displaced copies of a structure have to fit together by Taylor's
theorem and by the conservation of energy; each function here is what is left over when they do not. PITC and
PISC are those of Takamoto, Zaverkin, Niepert, "Physics-Informed Weakly Supervised Learning for Interatomic
Potentials", arXiv 2408.05215; the Taylor augmentation is from Cooper et al., npj Comput. Mater. 6, 54 (2020).

Notation: ``r`` the structure, ``d`` and ``p`` displacements of all its atoms, (N, 3) Å; energies are (M,) eV,
forces (N, 3) eV/Å, ``index`` (N,) the structure that each atom belongs to. ``<d, F>`` is a sum over the atoms
of ONE structure. Every residual is (M,) eV.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "anchor_first_order",
    "anchor_trapezoid",
    "loop_simpson",
    "loop_trapezoid",
    "pisc_triangle",
    "pisc_two_estimates",
    "pitc_central",
    "pitc_first_order",
    "pitc_midpoint",
    "pitc_trapezoid",
    "strain_first_order",
    "strain_trapezoid",
    "taylor_augmentation",
    "work",
]


def work(displacement: Tensor, forces: Tensor, index: Tensor, count: int) -> Tensor:
    """``<d, F>`` of each structure, the work that the forces do along the displacement.

    Args:
        displacement: (N, 3) Å.
        forces: (N, 3) eV/Å.
        index: (N,) structure of each atom.
        count: M.

    Returns:
        (M,) eV; zero for a structure without atoms.
    """
    return _sum(displacement * forces, index, count)


def _sum(products: Tensor, index: Tensor, count: int) -> Tensor:
    """(N, 3) -> (M,), over the atoms of each structure."""
    return products.new_zeros(count).index_add(0, index, products.sum(dim=1))


def pitc_first_order(e_r: Tensor, e_d: Tensor, f_r: Tensor, d: Tensor, index: Tensor) -> Tensor:
    """``E(r+d) - [E(r) - <d, F(r)>]`` (Takamoto et al.): ``<d, H d>/2`` and higher, falls as ``|d|²``."""
    return e_d - e_r + work(d, f_r, index, len(e_r))


def pitc_trapezoid(e_r: Tensor, e_d: Tensor, f_r: Tensor, f_d: Tensor, d: Tensor, index: Tensor) -> Tensor:
    """``E(r+d) - [E(r) - <d, (F(r) + F(r+d))/2>]``. Falls as ``|d|³``, zero on a harmonic surface."""
    return e_d - e_r + work(d, 0.5 * (f_r + f_d), index, len(e_r))


def pitc_midpoint(e_r: Tensor, e_d: Tensor, f_half: Tensor, d: Tensor, index: Tensor) -> Tensor:
    """``E(r+d) - [E(r) - <d, F(r+d/2)>]``. Falls as ``|d|³``, zero on a harmonic surface."""
    return e_d - e_r + work(d, f_half, index, len(e_r))


def pitc_central(e_plus: Tensor, e_minus: Tensor, f_r: Tensor, d: Tensor, index: Tensor) -> Tensor:
    """``[E(r+d) - E(r-d)]/2 + <d, F(r)>``. Falls as ``|d|³``, zero on a harmonic surface."""
    return 0.5 * (e_plus - e_minus) + work(d, f_r, index, len(e_plus))


def pisc_triangle(e_d: Tensor, e_p: Tensor, f_p: Tensor, d: Tensor, p: Tensor, index: Tensor) -> Tensor:
    """``E(r+d) - [E(r+p) - <d-p, F(r+p)>]`` (Takamoto et al.). Falls as ``|d|²``."""
    return e_d - e_p + work(d - p, f_p, index, len(e_d))


def pisc_two_estimates(
    e_r: Tensor, e_p: Tensor, f_r: Tensor, f_p: Tensor, d: Tensor, p: Tensor, index: Tensor
) -> Tensor:
    """``[E(r) - <d, F(r)>] - [E(r+p) - <d-p, F(r+p)>]``: two estimates of E(r+d). Falls as ``|d|²``."""
    return e_r - e_p + _sum((d - p) * f_p - d * f_r, index, len(e_r))


def loop_trapezoid(
    f_r: Tensor, f_d: Tensor, f_p: Tensor, d: Tensor, p: Tensor, index: Tensor, count: int
) -> Tensor:
    """``∮ F·dl`` along ``r -> r+p -> r+d -> r``, each side by the trapezoid rule. Falls as ``|d|³``.

    Exact where the forces are linear in the positions; zero on every conservative harmonic surface.
    """
    along = 0.5 * (work(p, f_r + f_p, index, count) + work(d - p, f_p + f_d, index, count))
    return along - 0.5 * work(d, f_d + f_r, index, count)


def loop_simpson(
    corners: tuple[Tensor, Tensor, Tensor],
    middles: tuple[Tensor, Tensor, Tensor],
    d: Tensor,
    p: Tensor,
    index: Tensor,
    count: int,
) -> Tensor:
    """``∮ F·dl`` along ``r -> r+p -> r+d -> r``, each side by Simpson's rule. Falls as ``|d|⁵``.

    Args:
        corners: forces at ``r``, ``r+p``, ``r+d``.
        middles: forces at ``r+p/2``, ``r+(p+d)/2``, ``r+d/2``.
        d: (N, 3) Å.
        p: (N, 3) Å.
        index: (N,) structure of each atom.
        count: M.
    """
    f_r, f_p, f_d = corners
    m_rp, m_pd, m_dr = middles
    total = work(p, f_r + 4.0 * m_rp + f_p, index, count)
    total = total + work(d - p, f_p + 4.0 * m_pd + f_d, index, count)
    return (total - work(d, f_d + 4.0 * m_dr + f_r, index, count)) / 6.0


def anchor_first_order(e_ref: Tensor, e_d: Tensor, f_d: Tensor, d: Tensor, index: Tensor) -> Tensor:
    """``E_ref(r) - [E(r+d) + <d, F(r+d)>]``: the label reached from the displaced copy. Falls as ``|d|²``."""
    return e_ref - e_d - work(d, f_d, index, len(e_d))


def anchor_trapezoid(
    e_ref: Tensor, e_d: Tensor, f_r: Tensor, f_d: Tensor, d: Tensor, index: Tensor
) -> Tensor:
    """``E_ref(r) - [E(r+d) + <d, (F(r) + F(r+d))/2>]``. Falls as ``|d|³``."""
    return e_ref - e_d - work(d, 0.5 * (f_r + f_d), index, len(e_d))


def taylor_augmentation(e_d: Tensor, e_ref: Tensor, f_ref: Tensor, d: Tensor, index: Tensor) -> Tensor:
    """``E(r+d) - [E_ref(r) - <d, F_ref(r)>]`` (Cooper et al. 2020). Falls as ``|d|²``."""
    return e_d - e_ref + work(d, f_ref, index, len(e_d))


def strain_first_order(e_0: Tensor, e_strained: Tensor, w_0: Tensor, strain: Tensor) -> Tensor:
    """``E(ε) - [E(0) - ε : W(0)]`` with the virial ``W = -dE/dε``. Falls as ``|ε|²``.

    Args:
        e_0: (M,) eV.
        e_strained: (M,) eV, positions and cell multiplied by ``1 + ε``.
        w_0: (M, 3, 3) eV.
        strain: (M, 3, 3), symmetric, dimensionless.
    """
    return e_strained - e_0 + (strain * w_0).sum(dim=(1, 2))


def strain_trapezoid(
    e_0: Tensor, e_strained: Tensor, w_0: Tensor, w_strained: Tensor, strain: Tensor
) -> Tensor:
    """``E(ε) - E(0)`` by the trapezoid rule along ``1 + tε``. Falls as ``|ε|³``.

    ``E(ε) - [E(0) - (ε : W(0) + (1+ε)^-1 ε : W(ε))/2]``: the virial of the strained structure is a derivative
    with respect to further strain on top of ``ε``, and along the path ``dE/dt = -(1+ε)^-1 ε : W``.
    """
    identity = torch.eye(3, dtype=strain.dtype, device=strain.device)
    along: Tensor = torch.linalg.solve(identity + strain, strain)
    return e_strained - e_0 + 0.5 * ((strain * w_0).sum(dim=(1, 2)) + (along * w_strained).sum(dim=(1, 2)))
