"""The `turnline` command.

A file for each command: it reads arguments, calls a library, and prints. Libraries stand in
`fleet`, `replay` and `traces`; beside the commands is what they share: options, failures, and how
things are shown.
"""

import sys


def main() -> None:
    """Run the command line, where what it needs is installed; else say what to install."""
    try:
        from turnline.ops.cli.app import main as run  # noqa: PLC0415  needs more than producers have
    except ModuleNotFoundError as error:
        from turnline.worker.extras import missing  # noqa: PLC0415  the help loads nothing of the worker's

        told = missing(error)
        if told is None:
            raise
        print(f"turnline: {told}", file=sys.stderr)
        sys.exit(2)
    run()


__all__ = ["main"]
