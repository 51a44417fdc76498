"""Watching a learning from outside: pictures, curves, an identity measure, and stopping when it rises no more."""
