"""`python -m turnline.worker`: run a worker, or say what to install for it."""

import sys

from turnline.worker.extras import missing


def main() -> None:
    """Run a worker with settings from the environment."""
    try:
        from turnline.worker.command import worker  # noqa: PLC0415  needs more than producers have

        worker(prog_name="python -m turnline.worker")
    except ModuleNotFoundError as error:
        advice = missing(error)
        if advice is None:
            raise
        print(f"turnline: {advice}", file=sys.stderr)  # noqa: T201  as the command line says it
        sys.exit(2)


if __name__ == "__main__":
    main()
