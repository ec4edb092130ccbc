"""LAMMPS: the plugin with ``pair_style pimlip``, input scripts, and a check in a real LAMMPS."""

from pimlip_zoo.deploy.lammps.build import build_plugin
from pimlip_zoo.deploy.lammps.check import check_deployment, single_points
from pimlip_zoo.deploy.lammps.input import MDSettings, write_run
from pimlip_zoo.deploy.lammps.run import lammps_command, run_lammps

__all__ = [
    "MDSettings",
    "build_plugin",
    "check_deployment",
    "lammps_command",
    "run_lammps",
    "single_points",
    "write_run",
]
