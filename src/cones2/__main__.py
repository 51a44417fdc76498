"""`python -m cones2`: the command line."""

from cones2.cli import main

main()
