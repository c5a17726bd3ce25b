"""`python -m turnline.contracts.schema [--check|--write]`: the generated schema files."""

import argparse
import sys
from pathlib import Path

from turnline.contracts.schema import committed, documents


def main() -> int:
    """Print, write or check the files; 1 if one is not what the structs say."""
    parser = argparse.ArgumentParser(
        prog="python -m turnline.contracts.schema", description=__doc__
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="exit 1 if a file is out of date")
    mode.add_argument("--write", action="store_true", help="write the files")
    options = parser.parse_args()
    stale = [name for name, content in documents().items() if committed(name) != content]
    for name in stale:
        if options.write:
            Path(__file__).with_name(name).write_bytes(documents()[name])
        sys.stdout.write(f"{'written' if options.write else 'out of date'}: {name}\n")
    return 1 if stale and not options.write else 0


if __name__ == "__main__":
    sys.exit(main())
