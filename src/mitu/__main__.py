"""`python -m mitu` is `mitu`."""

from mitu.cli import main

main()
