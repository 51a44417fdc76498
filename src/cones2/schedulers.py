"""diffusers' samplers for Stable Diffusion, under the names that people type."""

import difflib
import re
import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from cones2.errors import SettingsError

_CLASSES = {
    "DDIM": ("ddim",),
    "DDIMParallel": ("ddim-parallel",),
    "DDPM": ("ddpm",),
    "DDPMParallel": ("ddpm-parallel",),
    "DEISMultistep": ("deis",),
    "DPMSolverMultistep": ("dpm++", "dpm++-karras", "dpm++-2m-sde", "dpm++-2m-sde-karras"),
    "DPMSolverSDE": ("dpm++-sde", "dpm++-sde-karras"),
    "DPMSolverSinglestep": ("dpm++-single",),
    "EulerAncestralDiscrete": ("euler-a",),
    "EulerDiscrete": ("euler", "euler-karras"),
    "HeunDiscrete": ("heun", "heun-karras"),
    "KDPM2AncestralDiscrete": ("dpm2-a", "dpm2-a-karras"),
    "KDPM2Discrete": ("dpm2", "dpm2-karras"),
    "LCM": ("lcm",),
    "LMSDiscrete": ("lms", "lms-karras"),
    "PNDM": ("pndm",),
    "SASolver": ("sa",),
    "TCD": ("tcd",),
    "UniPCMultistep": ("unipc",),
}
FLOW_SCHEDULERS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
"""diffusers' classes of the models that learned flow matching."""
SCHEDULERS: Mapping[str, str] = MappingProxyType(
    dict(sorted((name, f"{kind}Scheduler") for kind, names in _CLASSES.items() for name in names))
)
"""diffusers' class by name: all that draw from text and have the `alphas_cumprod` that a layout needs.

Those in `-karras` take the noise levels of arXiv:2206.00364, Eq. 5; `2m-sde` is DPM++ with noise added in each step.
"""

_OTHER_NAMES = {"dpm++2m": "dpm++", "dpm++2mkarras": "dpm++-karras", "dpm++2s": "dpm++-single", "plms": "pndm"}


def scheduler_name(name: str) -> str:
    """Return the key of `SCHEDULERS` for a name as people type it: `euler_a`, `DPM++ 2M Karras`, `DDIMScheduler`.

    Raises:
        SettingsError: the name is unknown, or of a class that can't be used.
    """
    plain = {f"{kind}Scheduler": names[0] for kind, names in _CLASSES.items()}
    names = {_squeezed(each): key for each, key in [*plain.items(), *((key, key) for key in SCHEDULERS)]} | _OTHER_NAMES
    typed = _squeezed(name)
    if typed in names:
        return names[typed]
    close: list[str] = difflib.get_close_matches(typed, names, n=1, cutoff=0.7)
    meant = f"did you mean {names[close[0]]!r}? " if close else ""
    raise SettingsError(f"unknown or unsupported scheduler {name!r}: {meant}expected one of {', '.join(SCHEDULERS)}.")


def make_scheduler(scheduler: Any, trained: Any) -> Any:
    """Return the scheduler of a name that `scheduler_name` takes; a scheduler of diffusers' is returned as it is.

    Betas, prediction type and whatever else belongs to the model is that of `trained`, its own scheduler. Latents are
    never clipped to -1..1, as several classes do by default: every picture would become speckle.

    Raises:
        SettingsError: the name is unknown, needs a missing package, or the model was trained by flow matching.
    """
    import diffusers

    if isinstance(scheduler, diffusers.SchedulerMixin):
        return scheduler
    if not isinstance(scheduler, str):
        raise SettingsError(f"scheduler is a {type(scheduler).__name__}; expected a name or a scheduler of diffusers'.")
    key = scheduler_name(scheduler)
    if not hasattr(trained, "alphas_cumprod"):
        raise SettingsError(f"scheduler {scheduler!r} does not suit a model whose own is {type(trained).__name__}.")
    variant: dict[str, Any] = {"use_karras_sigmas": True} if key.endswith("-karras") else {}
    if "-2m-sde" in key:
        variant["algorithm_type"] = "sde-dpmsolver++"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # diffusers' own, about NumPy: nothing the user can do
            # clip_sample apart from the config: of that, diffusers drops what it lists as never set by models' makers.
            return getattr(diffusers, SCHEDULERS[key]).from_config(trained.config, clip_sample=False, **variant)
    except ImportError as error:
        package = "torchsde" if key.startswith("dpm++-sde") else "scipy"
        raise SettingsError(f"scheduler {key!r} needs {package}, which is missing: pip install {package}.") from error


def _squeezed(name: str) -> str:
    """Return a name without case, spaces, dashes and underscores, `dpmpp` as `dpm++` and `ancestral` as `a`."""
    return re.sub(r"[\s_-]", "", name.lower()).replace("dpmpp", "dpm++").replace("ancestral", "a")
