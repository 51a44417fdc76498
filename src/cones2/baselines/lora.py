"""LoRA: low-rank changes of the UNet's attention, learned apart and summed, or jointly."""

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import pydantic
import torch
from torch import Tensor

from cones2.baselines.base import Draw, Learned, Lesson, Scope, Step
from cones2.baselines.setup import Reader, as_tensors, combined, drawer_of, loaded, set_up
from cones2.baselines.stored import Tensors, token_rows
from cones2.baselines.textual_inversion import frozen_unet
from cones2.baselines.trainer import Training, denoiser_with, materials_of, train
from cones2.baselines.twins import unet_with, unwrapped_pipeline
from cones2.baselines.words import Identifier
from cones2.errors import ModelError, ResidualError, check_fields
from cones2.shared import own_settings

SETTINGS = Training(steps=800, batch_size=2, learning_rate=1e-4)
"""diffusers' rate and the steps of the paper's DreamBooth: the paper has no LoRA."""

_LAYERS = ("to_q", "to_k", "to_v", "to_out.0")
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
_JOINT = "joint"


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """DreamBooth by LoRA (arXiv:2106.09685), as diffusers' `train_dreambooth_lora.py` does it, by peft.

    Rank 4 on the attention's `to_q`, `to_k`, `to_v` and `to_out.0`, DreamBooth's loss and identifiers. Adapters that
    were learned apart are summed, each whole, W + ΣBA: `add_weighted_adapter("linear")` adds A and B apart, and so
    mixes them (huggingface/peft#643).

    Attributes:
        training: how long and how fast.
        rank: of each change, and its alpha.
        identifier: as `DreamBooth`.
        joint: whether one adapter is learned for a set.
    """

    training: Training = SETTINGS
    rank: Annotated[int, pydantic.Field(ge=1, le=1024)] = 4
    identifier: Identifier = "new"
    joint: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "LoRA")

    @property
    def name(self) -> str:
        """The row's name."""
        return "lora_joint" if self.joint else "lora"

    @property
    def scope(self) -> Scope:
        """What is learned together."""
        return "set" if self.joint else "subject"

    @own_settings()
    def learn(self, pipeline: Any, lessons: Mapping[str, Lesson], *, seed: int = 0) -> Generator[Step, None, None]:
        """Return a generator of steps, as `Rival.learn`; ModelError where peft is not installed."""
        peft = _peft()
        setup = set_up(self, pipeline, lessons, seed, self.identifier)
        materials = materials_of(setup.pipeline, lessons, setup.captions, self.training, seed)
        reader, adapter = Reader(setup.pipeline, setup.rows), _JOINT if self.joint else next(iter(lessons))
        unet = frozen_unet(setup.pipeline)
        with torch.random.fork_rng(devices=[]):  # peft draws from PyTorch's own random numbers, on the CPU
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the caller's GPUs too
            unet.add_adapter(_config(peft, self.rank), adapter)

        def read() -> Tensors:
            state = peft.get_peft_model_state_dict(unet, adapter_name=adapter)
            kept = {f"{adapter}/{name}": value.detach().float().cpu().clone() for name, value in state.items()}
            return Tensors(self.name, setup.texts, setup.class_words, kept | token_rows(setup.rows))

        groups = [{"params": [weight for weight in unet.parameters() if weight.requires_grad]}]
        denoiser = denoiser_with(setup.pipeline, unet)
        return train(denoiser, materials, reader.embed_once, groups, self.training, seed=seed, read=read)

    combine = combined
    load = loaded

    @contextmanager
    def drawing(self, pipeline: Any, learned: Learned) -> Iterator[Draw]:
        """Draw with all adapters at once."""
        kept, own = as_tensors(self, learned), unwrapped_pipeline(pipeline)
        yield drawer_of(pipeline, kept.texts, kept.rows, unet=unet_with(own, summed(own, kept.own)))


def summed(pipeline: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights `W + ΣBA` of a file's adapters, float32: the same as peft's `set_adapters` of all at 1.

    Raises:
        ResidualError: an adapter does not fit the UNet.
    """
    original = dict(pipeline.unet.named_parameters())
    made: dict[str, Tensor] = {}
    for key, down in tensors.items():
        name = key.partition("/")[2].removesuffix(_DOWN) + ".weight"
        up = tensors.get(key.removesuffix(_DOWN) + _UP)
        if key.endswith(_UP):
            continue
        shape = None if up is None or up.ndim != 2 or down.ndim != 2 else (up.shape[0], down.shape[1])
        if name not in original or up is None or original[name].shape != shape or up.shape[1] != down.shape[0]:
            raise ResidualError(f"{key[:200]} does not fit this UNet: learn it on this model.")
        before = original[name].detach().float().cpu()
        made[name] = made.get(name, before) + up.float() @ down.float()
    return made


def _config(peft: Any, rank: int) -> Any:
    return peft.LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(_LAYERS))


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ModelError("LoRA needs peft: pip install peft.") from error
    return peft
