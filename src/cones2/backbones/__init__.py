"""Pretrained models: what differs between `mini` and Stable Diffusion 1.x and 2.x, behind one interface."""

from cones2.backbones.backbone import Backbone, LatentMoments
from cones2.backbones.opening import open_backbone
from cones2.backbones.schedulers import SCHEDULERS, make_scheduler

__all__ = ["SCHEDULERS", "Backbone", "LatentMoments", "make_scheduler", "open_backbone"]
