"""`python -m ops.cli`: the `turnline` command where it is not installed."""

from ops.cli import main

main()
