"""Learning: from photos to a residual (arXiv:2305.19327, Sec. 3.2)."""
