"""`python -m turnline.ops.cli`: the `turnline` command where it is not installed."""

from turnline.ops.cli import main

main()
