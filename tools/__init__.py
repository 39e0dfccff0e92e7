"""What the Makefile runs that needs more than a line."""
