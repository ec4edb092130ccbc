import subprocess
import sys

_SCRIPT = """
import logging
from pimlip_zoo.config import load_config
from pimlip_zoo.experiment.trainer import switches
with switches(load_config(None).trainer):
    import lightning.pytorch
    print(logging.getLogger("lightning.pytorch").getEffectiveLevel() >= logging.WARNING)
"""


def test_the_first_training_of_a_process_is_as_quiet_as_later_ones():
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "True", done.stderr
