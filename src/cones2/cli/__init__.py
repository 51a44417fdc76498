"""The command line: each command parses its options, calls the library and prints what came of it.

Commands import the library when they run, not before: help comes at once, and a wrong option is told in no time.
"""

from cones2.cli.app import main

__all__ = ["main"]
