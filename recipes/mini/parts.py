"""Types for diffusers' models: to mypy, their classes lack the methods that they inherit."""

from typing import Any

Autoencoder = Any
"""`diffusers.AutoencoderKL`."""

UNet = Any
"""`diffusers.UNet2DConditionModel`."""
