"""Run a script that knows PEFT alone, with atoms registered in PEFT: python with_atoms.py run.py -v FOLDER

PEFT understands `"peft_type": "ATOMS"` in an adapter_config.json once `atomtune` has been imported.
"""

import runpy
import sys

import atomtune  # noqa: F401  registers the method

del sys.argv[0]  # the script sees its own name and arguments
runpy.run_path(sys.argv[0], run_name="__main__")
