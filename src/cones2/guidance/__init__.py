"""Layout guidance: the edit of cross-attention (arXiv:2305.19327, Sec. 3.3)."""
