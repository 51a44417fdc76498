"""The methods that the paper compares itself with, and a few later ones, on whatever model cones2 draws with."""
