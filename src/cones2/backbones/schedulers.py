"""The samplers of diffusers that can draw with a Stable Diffusion backbone, by short names."""

import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import diffusers

from cones2.errors import SettingsError

SCHEDULERS: Mapping[str, str] = MappingProxyType(
    {
        "ddim": "DDIMScheduler",
        "ddim-parallel": "DDIMParallelScheduler",
        "ddpm": "DDPMScheduler",
        "ddpm-parallel": "DDPMParallelScheduler",
        "deis": "DEISMultistepScheduler",
        "dpm++": "DPMSolverMultistepScheduler",
        "dpm++-2m-sde": "DPMSolverMultistepScheduler",
        "dpm++-2m-sde-karras": "DPMSolverMultistepScheduler",
        "dpm++-karras": "DPMSolverMultistepScheduler",
        "dpm++-sde": "DPMSolverSDEScheduler",
        "dpm++-sde-karras": "DPMSolverSDEScheduler",
        "dpm++-single": "DPMSolverSinglestepScheduler",
        "dpm2": "KDPM2DiscreteScheduler",
        "dpm2-a": "KDPM2AncestralDiscreteScheduler",
        "dpm2-a-karras": "KDPM2AncestralDiscreteScheduler",
        "dpm2-karras": "KDPM2DiscreteScheduler",
        "euler": "EulerDiscreteScheduler",
        "euler-a": "EulerAncestralDiscreteScheduler",
        "euler-karras": "EulerDiscreteScheduler",
        "heun": "HeunDiscreteScheduler",
        "heun-karras": "HeunDiscreteScheduler",
        "lcm": "LCMScheduler",
        "lms": "LMSDiscreteScheduler",
        "lms-karras": "LMSDiscreteScheduler",
        "pndm": "PNDMScheduler",
        "sa": "SASolverScheduler",
        "tcd": "TCDScheduler",
        "unipc": "UniPCMultistepScheduler",
    }
)
"""diffusers' class by short name: all that draw from text and have the `alphas_cumprod` that a layout needs.

Those in `-karras` take the noise levels of arXiv:2206.00364, Eq. 5; `2m-sde` is DPM++ with noise added in each step.
"""

_KARRAS = {"use_karras_sigmas": True}
_SDE = {"algorithm_type": "sde-dpmsolver++"}


def check_scheduler(name: str) -> str:
    """Give diffusers' class for a name, short or the class's own.

    Raises:
        SettingsError: the name is unknown, or of a class that can't be used.
    """
    class_name = SCHEDULERS.get(name, name)
    if class_name not in SCHEDULERS.values():
        raise SettingsError(f"unknown or unsupported scheduler {name!r}; expected one of {', '.join(SCHEDULERS)}.")
    return class_name


def make_scheduler(name: str, trained: Any) -> Any:
    """Make the scheduler `name` (short, or diffusers' class name) for a model whose own scheduler is `trained`.

    Everything that belongs to the model (betas, prediction type, steps offset...) is taken from `trained`. Latents are
    never clipped to -1..1: several classes do so unless told otherwise, and would turn every picture into speckle.

    Raises:
        SettingsError: the name is unknown, of a class without `alphas_cumprod`, or needs a missing package.
    """
    class_name = check_scheduler(name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # diffusers' own, about NumPy: nothing the user can do
            # Apart from the config: of that, diffusers drops what it lists as never set by the model's makers.
            return getattr(diffusers, class_name).from_config(trained.config, clip_sample=False, **_variant(name))
    except ImportError as error:
        package = "torchsde" if class_name == "DPMSolverSDEScheduler" else "scipy"
        raise SettingsError(f"scheduler {name!r} needs {package}, which is missing: pip install {package}.") from error


def _variant(name: str) -> dict[str, Any]:
    """Give what a short name says beside the class."""
    return {**(_KARRAS if name.endswith("-karras") else {}), **(_SDE if "-2m-sde" in name else {})}
