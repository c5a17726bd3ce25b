"""The `turnline` command."""

import sys


def main() -> None:
    """Run the command line, where what it needs is installed; else say what to install."""
    try:
        from ops.cli.app import main as run  # noqa: PLC0415  needs more than producers have
    except ModuleNotFoundError as error:
        from worker.extras import missing  # noqa: PLC0415  the help loads nothing of the worker's

        told = missing(error)
        if told is None:
            raise
        print(f"turnline: {told}", file=sys.stderr)
        sys.exit(2)
    run()


__all__ = ["main"]
