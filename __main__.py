"""`python -m signarium`."""

from .cli import main

main()
