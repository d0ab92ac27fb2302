"""`python -m daskfleet_operator`."""

from daskfleet_operator.cli import main

main()
