"""`python -m mitu.cli` is `mitu`."""

from mitu.cli import main

main()
