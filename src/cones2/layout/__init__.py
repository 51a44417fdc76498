"""Layouts: which subject belongs where, as boxes, polygons and masks in a picture whose sides are 1 long."""

from cones2.layout.layout import Layout, Region
from cones2.layout.masks import Mask
from cones2.layout.shapes import WHOLE, Box, Polygon, Rest

__all__ = ["WHOLE", "Box", "Layout", "Mask", "Polygon", "Region", "Rest"]
