"""Captions that contain the class word (arXiv:2305.19327, Sec. 3.2)."""
