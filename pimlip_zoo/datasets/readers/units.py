"""Units at the border: readers turn what a file holds into eV and Å, by names that someone gave."""

from __future__ import annotations

from functools import lru_cache

from pimlip_zoo.errors import InputError, did_you_mean


@lru_cache(maxsize=1)
def _tables() -> dict[str, dict[str, float]]:
    from ase import units

    return {
        "energy": {
            "eV": 1.0,
            "meV": 1e-3,
            "Hartree": units.Hartree,
            "Ha": units.Hartree,
            "Eh": units.Hartree,
            "Rydberg": units.Rydberg,
            "Ry": units.Rydberg,
            "kcal/mol": units.kcal / units.mol,
            "kJ/mol": units.kJ / units.mol,
        },
        "length": {
            "Å": 1.0,
            "Ang": 1.0,
            "Angstrom": 1.0,
            "A": 1.0,
            "Bohr": units.Bohr,
            "a0": units.Bohr,
            "nm": 10.0,
            "pm": 0.01,
        },
        "stress": {
            "GPa": units.GPa,
            "MPa": 1e-3 * units.GPa,
            "kbar": 0.1 * units.GPa,
            "bar": 1e-4 * units.GPa,
            "Pa": units.Pascal,
        },
    }


def energy_unit(name: str, *, file: object = None) -> float:
    """How many eV one of it is.

    >>> energy_unit("eV")
    1.0
    """
    return _find("energy", name, file)


def length_unit(name: str, *, file: object = None) -> float:
    """How many Å one of it is.

    >>> length_unit("nm")
    10.0
    """
    return _find("length", name, file)


def forces_unit(name: str, *, file: object = None) -> float:
    """How many eV/Å one of it is; written ``ENERGY/LENGTH``.

    >>> forces_unit("eV/nm")
    0.1
    """
    energy, slash, length = name.rpartition("/")
    if not slash or energy in ("kcal", "kJ"):
        raise InputError(
            f"{name!r} is no unit of force", file=file, key="forces", hint="write ENERGY/LENGTH, as in eV/Å"
        )
    return _find("energy", energy, file) / _find("length", length, file)


def stress_unit(name: str, *, file: object = None) -> float:
    """How many eV/Å³ one of it is; a pressure, or ``ENERGY/LENGTH^3``.

    >>> stress_unit("eV/Å^3")
    1.0
    >>> stress_unit("eV/Ang/Ang/Ang")
    1.0
    """
    parts = name.rsplit("/", 3)
    if len(parts) == 4 and parts[1] == parts[2] == parts[3]:
        return _find("energy", parts[0], file) / _find("length", parts[1], file) ** 3
    energy, slash, volume = name.rpartition("/")
    for cube in ("^3", "**3", "³", "3"):
        if slash and volume.endswith(cube):
            return _find("energy", energy, file) / _find("length", volume.removesuffix(cube), file) ** 3
    return _find("stress", name, file)


def _find(kind: str, name: str, file: object) -> float:
    table = _tables()[kind]
    known = {unit.casefold(): value for unit, value in table.items()}
    value = known.get(name.strip().casefold())
    if value is None:
        raise InputError(
            f"{name!r} is no unit of {kind}", file=file, key=kind, hint=did_you_mean(name, table)
        )
    return value
