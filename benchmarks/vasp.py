"""VASP's outputs as far as readers look at them: what conversion is measured with, there being no VASP to run."""

import numpy as np
from ase.units import GPa

SYMBOLS = {1: "H", 6: "C", 8: "O"}
KBAR = GPa / 10


def by_species(numbers):
    """The order of the atoms in VASP's files, and each symbol with its count."""
    order = np.argsort(numbers, kind="stable")
    elements, counts = np.unique(numbers, return_counts=True)
    return order, [(SYMBOLS[int(z)], int(count)) for z, count in zip(elements, counts, strict=True)]


def rows(values, tag="v"):
    return "".join("<{0}> {1:.8f} {2:.8f} {3:.8f} </{0}>\n".format(tag, *row) for row in values)


def structure(cell, positions, name=""):
    scaled = positions @ np.linalg.inv(cell)
    return (
        f'<structure{name}><crystal><varray name="basis">{rows(cell)}</varray></crystal>'
        f'<varray name="positions">{rows(scaled)}</varray></structure>\n'
    )


def write_vasprun(path, numbers, cell, positions, energies, forces, stresses, entropy=0.0):
    """A trajectory as vasprun.xml: (M, N, 3) Å, (M,) eV, (M, N, 3) eV/Å, (M, 3, 3) eV/Å³ (ASE's sign).

    ``entropy`` (eV) is what the free energy lies below the energies, which are those of no smearing.
    """
    order, species = by_species(numbers)
    atoms = "".join(
        f"<rc><c>{s}</c><c>{k + 1}</c></rc>" for k, (s, n) in enumerate(species) for _ in range(n)
    )
    types = "".join(f"<rc><c>{n}</c><c>{s}</c><c>1.0</c><c>1.0</c><c>PAW</c></rc>" for s, n in species)
    with path.open("w") as file:
        file.write(
            '<?xml version="1.0" encoding="ISO-8859-1"?>\n<modeling>\n'
            '<kpoints><varray name="kpointlist"><v> 0.0 0.0 0.0 </v></varray>'
            '<varray name="weights"><v> 1.0 </v></varray></kpoints>\n<atominfo>'
            f"<atoms>{len(numbers)}</atoms><types>{len(species)}</types>"
            f'<array name="atoms"><set>{atoms}</set></array>'
            f'<array name="atomtypes"><set>{types}</set></array></atominfo>\n'
            + structure(cell, positions[0][order], ' name="initialpos"')
        )
        for r, e, f, s in zip(positions, energies, forces, stresses, strict=True):
            energy = f'<energy><i name="e_fr_energy">{e - entropy:.8f}</i><i name="e_wo_entrp">{e:.8f}</i>'
            energy += f'<i name="e_0_energy">{e:.8f}</i></energy>'
            file.write(
                f"<calculation><scstep>{energy}</scstep>{structure(cell, r[order])}"
                f'<varray name="forces">{rows(f[order])}</varray>'
                f'<varray name="stress">{rows(-s / KBAR)}</varray>{energy}</calculation>\n'
            )
        file.write("</modeling>\n")


def write_outcar(path, numbers, cell, positions, energies, forces, stresses, entropy=0.0):
    """The same as OUTCAR."""
    order, species = by_species(numbers)
    voigt = [(0, 0), (1, 1), (2, 2), (0, 1), (1, 2), (2, 0)]
    with path.open("w") as file:
        file.write(" vasp.6.3.0 20Jan22 complex\n")
        for _ in range(2):  # the names come twice in the files of VASP, too
            file.writelines(f" POTCAR:    PAW_PBE {symbol} 01Jan2000\n" for symbol, _ in species)
        file.writelines(f"   VRHFIN ={symbol}: s\n" for symbol, _ in species)
        file.write(f"   ions per type = {' '.join(str(n) for _, n in species)}\n")
        file.write("   ISPIN  =      1    spin polarized calculation?\n   IBRION =      0\n")
        file.write("   LNONCOLLINEAR =      F non collinear calculations\n   NELECT = 20\n")
        for k, (r, e, f, s) in enumerate(zip(positions, energies, forces, stresses, strict=True)):
            file.write(f"--------------------------------------- Iteration {k + 1}(   1)  -----\n")
            pressure = " ".join(f"{-s[a, b] / KBAR:.5f}" for a, b in voigt)
            file.write(f"  in kB  {pressure}\n  direct lattice vectors      reciprocal lattice vectors\n")
            inverse = np.linalg.inv(cell).T
            for row, other in zip(cell, inverse, strict=True):
                file.write("  " + "".join(f"{x:18.9f}" for x in (*row, *other)) + "\n")
            file.write(" POSITION                                       TOTAL-FORCE (eV/Angst)\n ------\n")
            for place, force in zip(r[order], f[order], strict=True):
                file.write("".join(f" {x:.8f}" for x in (*place, *force)) + "\n")
            file.write(" ------\n  FREE ENERGIE OF THE ION-ELECTRON SYSTEM (eV)\n  ------\n")
            file.write(f"  free  energy   TOTEN  = {e - entropy:.8f} eV\n\n")
            file.write(f"  energy  without entropy= {e:.8f}  energy(sigma->0) = {e:.8f}\n")
