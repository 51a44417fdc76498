"""Pretrained models: what differs between `mini` and Stable Diffusion 1.x, 2.x and XL, behind one interface."""

from cones2.backbones.backbone import Backbone, LatentMoments
from cones2.backbones.opening import open_backbone
from cones2.backbones.schedulers import SCHEDULERS, make_scheduler

__all__ = ["SCHEDULERS", "Backbone", "LatentMoments", "make_scheduler", "open_backbone"]
