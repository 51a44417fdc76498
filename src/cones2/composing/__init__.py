"""Composing: the sampler that puts subjects where the layout says (arXiv:2305.19327, Alg. 1)."""
