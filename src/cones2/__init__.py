"""Teach a text-to-image model your own subjects and place any number of them in one picture (arXiv:2305.19327)."""
