"""`python -m wantune`, or `python FOLDER` for a checkout in a folder of any name: the command line."""

import importlib.util
import sys
from pathlib import Path


def _main():
    if __package__:
        from .command.main import main

        return main
    # Python runs the folder as a script: it has no package, and its folders must not be found as top-level modules
    root = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != root]
    found = importlib.util.spec_from_file_location(
        "wantune", root / "__init__.py", submodule_search_locations=[str(root)])
    sys.modules["wantune"] = importlib.util.module_from_spec(found)
    found.loader.exec_module(sys.modules["wantune"])
    return importlib.import_module("wantune.command.main").main


if __name__ == "__main__":
    try:
        main = _main()
    except ModuleNotFoundError as error:
        sys.exit(f"wantune: this Python has no {error.name}; install what requirements.txt names into it: "
                 f"{sys.executable} -m pip install -r requirements.txt")
    sys.exit(main())
