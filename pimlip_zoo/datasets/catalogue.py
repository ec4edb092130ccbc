"""Data sets of the field that can be fetched by name: where they are, what they are, how to cite them.

A checksum stands here only where it was published by someone who verified the file. Where none is known, the
user gives one or says that the file is taken as it comes.
"""

from __future__ import annotations

from dataclasses import dataclass

from pimlip_zoo.errors import InputError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class KnownSet:
    """One file of a published data set."""

    name: str
    address: str
    """Of the file."""
    page: str
    """Where its authors describe it."""
    licence: str
    citation: str
    level_of_theory: str
    checksum: str | None = None
    """``md5:...`` or ``sha256:...``; None where none is known."""
    options: str = ""
    """What to write behind the file's name to read it."""
    remark: str = ""

    named: str = ""
    """The file's name where the address does not tell it."""

    @property
    def file(self) -> str:
        """The name that the file gets."""
        return self.named or self.address.rpartition("/")[2].partition("?")[0]


_ANI1X = {
    "address": "https://springernature.figshare.com/ndownloader/files/18112775",
    "page": "https://doi.org/10.6084/m9.figshare.c.4712477",
    "licence": "stated on the page",
    "citation": "Smith et al., Sci. Data 7, 134 (2020), doi 10.1038/s41597-020-0473-z",
    "checksum": "md5:98090dd6679106da861f52bed825ffb7",
    "named": "ani1x-release.h5",
}
_SPICE = {
    "page": "https://doi.org/10.5281/zenodo.8222043",
    "licence": "stated on the page",
    "citation": "Eastman et al., Sci. Data 10, 11 (2023), doi 10.1038/s41597-022-01882-6",
    "level_of_theory": "ωB97M-D3(BJ)/def2-TZVPPD",
}
_MD22 = {
    "page": "http://www.sgdml.org",
    "licence": "stated on the page",
    "citation": "Chmiela et al., Sci. Adv. 9, eadf0873 (2023), doi 10.1126/sciadv.adf0873",
    "level_of_theory": "PBE+MBD",
}
_MD22_FILES = {
    "ac-ala3-nhme": "md22_Ac-Ala3-NHMe.npz",
    "dha": "md22_DHA.npz",
    "stachyose": "md22_stachyose.npz",
    "at-at": "md22_AT-AT.npz",
    "at-at-cg-cg": "md22_AT-AT-CG-CG.npz",
    "buckyball-catcher": "md22_buckyball-catcher.npz",
    "dw-nanotube": "md22_dw_nanotube.npz",
}
_3BPA_FILES = ("train_300K", "train_mixedT", "test_300K", "test_600K", "test_1200K", "iso_atoms")

KNOWN_SETS: dict[str, KnownSet] = {
    known.name: known
    for known in (
        KnownSet(name="ani-1x", level_of_theory="ωB97X/6-31G(d)", **_ANI1X),
        KnownSet(
            name="ani-1ccx",
            level_of_theory="CCSD(T)*/CBS",
            options="?energy_key=ccsd(t)_cbs.energy",
            remark="The file is that of ani-1x; the option reads the coupled-cluster energies, which have no forces.",
            **_ANI1X,
        ),
        KnownSet(
            name="spice-1",
            address="https://zenodo.org/records/8222043/files/SPICE-1.1.4.hdf5",
            checksum="md5:f27d4c81da0e37d6547276bf6b4ae6a1",
            **_SPICE,
        ),
        KnownSet(
            name="spice-2",
            address="https://zenodo.org/records/10975225/files/SPICE-2.0.1.hdf5",
            checksum="md5:bfba2224b6540e1390a579569b475510",
            **{**_SPICE, "page": "https://doi.org/10.5281/zenodo.10975225"},
        ),
        KnownSet(
            name="rmd17",
            address="https://figshare.com/ndownloader/files/23950376",
            page="https://doi.org/10.6084/m9.figshare.12672038",
            licence="stated on the page",
            citation="Christensen, von Lilienfeld, Mach. Learn.: Sci. Technol. 1, 045018 (2020)",
            level_of_theory="PBE/def2-SVP",
            remark="Unpack it; each molecule is rmd17/npz_data/rmd17_NAME.npz. "
            "The authors advise against training on more than 1000 structures.",
            named="rmd17.tar.bz2",
        ),
        *(
            KnownSet(
                name=f"md22-{name}", address=f"http://www.quantum-machine.org/gdml/data/npz/{file}", **_MD22
            )
            for name, file in _MD22_FILES.items()
        ),
        *(
            KnownSet(
                name=f"3bpa-{file.lower().replace('_', '-')}",
                address=f"https://raw.githubusercontent.com/davkovacs/BOTNet-datasets/main/dataset_3BPA/{file}.xyz",
                page="https://github.com/davkovacs/BOTNet-datasets",
                licence="MIT",
                citation="Kovács et al., J. Chem. Theory Comput. 17, 7696 (2021), doi 10.1021/acs.jctc.1c00647",
                level_of_theory="ωB97X/6-31G(d)",
            )
            for file in _3BPA_FILES
        ),
        KnownSet(
            name="tio2-1000",
            address="https://raw.githubusercontent.com/atomisticnet/aenet-PyTorch/main/example/dir_xsf.tar.gz",
            page="https://doi.org/10.1016/j.commatsci.2015.11.047",
            licence="stated in the repository aenet-PyTorch",
            citation="Artrith, Urban, Comput. Mater. Sci. 114, 135 (2016)",
            level_of_theory="PBE",
            remark="1000 of the 7815 structures, as XSF files; unpack them.",
        ),
    )
}
"""By name."""


def known_set(name: str) -> KnownSet:
    """The set of a name.

    Raises:
        InputError: for an unknown name, with the nearest ones.
    """
    if name not in KNOWN_SETS:
        raise InputError(
            f"no known data set is called {name!r}", key="name", hint=did_you_mean(name, KNOWN_SETS)
        )
    return KNOWN_SETS[name]
