#!/usr/bin/env python3
"""Try WanTune or test it: `python3 run.py demo` and `python3 run.py test`.

Needs nothing but Python: both commands make `.venv` beside this file, install what is missing, find or
unpack ComfyUI, and start quickly from the second time on. `python3 run.py demo --help` lists the options.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).absolute().parent

# Here and not only in pyproject.toml: nothing has checked the Python that a user starts this file with.
if sys.version_info < (3, 10):  # noqa: UP036
    found = ".".join(map(str, sys.version_info[:2]))
    sys.exit(f"WanTune needs Python 3.10 or newer, this is {found}; start run.py with a newer python3.")

from demo import command  # noqa: E402

if __name__ == "__main__":
    sys.exit(command.main(ROOT, sys.argv[1:]))
