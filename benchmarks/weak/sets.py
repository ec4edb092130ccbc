"""The data sets of the study: where they are published, and the names that they have in the data folder.

Get each from its source, convert it with `pimlip-zoo data convert`, and put it below one folder (--root), as named
here.

acac          acetylacetone, PBE-D3: dataset_acac of github.com/davkovacs/BOTNet-datasets (MIT)
rmd17_aspirin revised MD17 aspirin, PBE: figshare 10.6084/m9.figshare.12672038
tio2          TiO2, PBE: example data of github.com/atomisticnet/aenet-PyTorch, 1,000 of the structures split 800/50/150
deepmd_water  water, PBE0: examples/water of github.com/deepmodeling/deepmd-kit, train 0-2, test 3
mlearn_Si     silicon, PBE: data/Si of github.com/materialsvirtuallab/mlearn, its own split; mlearn_Mo: molybdenum,
              mlearn_Li: lithium, mlearn_Ge: germanium
3bpa          3BPA, wB97X: dataset_3BPA of github.com/davkovacs/BOTNet-datasets (MIT)
ethanol, cual built in

Solids and water get their weak labels from CHGNet, a potential for 89 elements that was trained on the Materials
Project (Deng et al., Nat. Mach. Intell. 5, 1031 (2023)); `pip install chgnet` brings its weights.
"""

from dataclasses import dataclass

CHGNET = "chgnet.model.dynamics:CHGNetCalculator"


@dataclass(frozen=True)
class StudySet:
    """One data set."""

    train: str
    """Training structures; subsets of it are drawn by seed."""
    valid: str | None
    tests: tuple[str, ...]
    cheap: str
    """Calculator of the weak labels."""
    sizes: tuple[int, ...]
    """The first is the number of labels of all ways of training, the others are those of the plain runs beside them."""
    pool: int = 500
    """Structures that the cheap calculator labels."""
    timestep: float = 1.0
    """fs, of their dynamics."""
    stride: int = 10
    displaced: tuple[float, ...] = ()
    """Å, amplitudes of displacements that sample the pool, where dynamics with the calculator would take too long."""
    batch_size: int = 5
    periodic: bool = False


def mlearn(element: str, labels: int) -> StudySet:
    """The set of an element; all of its labels, but for those of validation, are the larger number."""
    return StudySet(
        train=f"mlearn_{element}/train.extxyz",
        valid=None,
        tests=(f"mlearn_{element}/test.extxyz",),
        cheap=CHGNET,
        sizes=(50, labels),
        pool=300,
        displaced=(0.05, 0.15),
        batch_size=2,
        periodic=True,
    )


MLEARN = {"Si": 180, "Mo": 170, "Li": 200, "Ge": 190}
SETS = {
    "acac": StudySet(
        train="acac/train_300K.extxyz@0:450",
        valid="acac/train_300K.extxyz@450:500",
        tests=("acac/test_MD_300K.extxyz", "acac/test_MD_600K.extxyz"),
        cheap="gfn2",
        sizes=(50, 200, 450),
    ),
    "rmd17_aspirin": StudySet(
        train="rmd17_aspirin/valid_950.extxyz@0:500",
        valid="rmd17_aspirin/train_50.extxyz",
        tests=("rmd17_aspirin/valid_950.extxyz@500:950",),
        cheap="gfn2",
        sizes=(50, 200, 500),
    ),
    "tio2": StudySet(
        train="tio2_aenet1000/train_800.extxyz",
        valid="tio2_aenet1000/valid_50.extxyz",
        tests=("tio2_aenet1000/test_150.extxyz",),
        cheap=CHGNET,
        sizes=(50, 200, 500),
        pool=300,
        displaced=(0.05, 0.15),
        batch_size=4,
        periodic=True,
    ),
    "deepmd_water": StudySet(
        train="deepmd_water/train_data_0.extxyz,deepmd_water/train_data_1.extxyz",
        valid="deepmd_water/train_data_2.extxyz",
        tests=("deepmd_water/test_data_3.extxyz",),
        cheap=CHGNET,
        sizes=(50, 100),
        pool=100,
        displaced=(0.02, 0.05),
        batch_size=1,
        periodic=True,
    ),
    **{f"mlearn_{element}": mlearn(element, labels) for element, labels in MLEARN.items()},
    "3bpa": StudySet(
        train=",".join(f"3bpa/train_300K.extxyz@{k}::10" for k in range(1, 10)),
        valid="3bpa/train_300K.extxyz@::10",
        tests=("3bpa/train_300K.extxyz@::10", "3bpa/ood_mixedT_minus_train300K.extxyz"),
        cheap="gfn2",
        sizes=(50, 450),
    ),
    "ethanol": StudySet(
        train="builtin:ethanol-gfn2",
        valid="builtin:ethanol-gfn2/valid",
        tests=("builtin:ethanol-gfn2/test_300K", "builtin:ethanol-gfn2/test_600K"),
        cheap="gfn1",
        sizes=(50, 200),
    ),
    "cual": StudySet(
        train="builtin:cual-emt",
        valid="builtin:cual-emt/valid",
        tests=("builtin:cual-emt/test",),
        cheap="ase.calculators.lj:LennardJones",
        sizes=(50, 100),
        batch_size=4,
        periodic=True,
    ),
}


def located(root: str, data: str) -> str:
    """DATA below the folder of the data sets, unless it is built in."""
    return data if data.startswith("builtin:") else ",".join(f"{root}/{part}" for part in data.split(","))
