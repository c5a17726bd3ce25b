"""`python -m ops.cli`: the `turnline` command where it is not installed."""

from ops.cli.app import main

main()
