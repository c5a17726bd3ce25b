"""Runs the Procfile with honcho, and leaves workers the time to drain that honcho cuts to 5 s."""

import runpy
from importlib import import_module
from typing import Final

KILL_WAIT_S: Final = 60
"""How long after the first process has ended the others may take before honcho kills them."""


def main() -> None:
    """Behave as `honcho` does, with the same arguments."""
    vars(import_module("honcho.manager"))["KILL_WAIT"] = KILL_WAIT_S  # it has no option for this
    runpy.run_module("honcho", run_name="__main__")


if __name__ == "__main__":
    main()
