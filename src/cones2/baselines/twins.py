"""Copies of a pipeline's parts that share all weights but those that a rival changes: the caller's stay as they are.

Training and drawing work on such twins, so there is nothing to restore afterwards, and a rival costs the memory of what
it trained.
"""

import copy
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from cones2.errors import LearningError, ModelError, ResidualError
from cones2.families import Family
from cones2.learning.data import float32_copy
from cones2.learning.learnable import learnable_family
from cones2.models import facts_of, set_facts
from cones2.pipeline import Cones2Pipeline
from cones2.prompts import unknown_words


def unwrapped_pipeline(pipeline: Any) -> Any:
    """Return the diffusers pipeline of a `Cones2Pipeline`, or the pipeline itself."""
    return getattr(pipeline, "pipeline", pipeline)


def rival_family(pipeline: Any) -> Family:
    """Return the family of a pipeline that rivals can learn on.

    Raises:
        ModelError: they can't: it is not of Stable Diffusion 1.x or 2.x, or it is offloaded.
    """
    family = learnable_family(pipeline)
    if len(family.text_parts) != 1 or family.velocity is not None:
        raise ModelError(f"rivals learn on Stable Diffusion 1.x and 2.x, and this is {family.name}.")
    if getattr(pipeline, "_all_hooks", None):
        raise ModelError("this pipeline is offloaded: rivals learn on a whole one; call remove_all_hooks() and to().")
    return family


def twin_of(module: Any, changed: Collection[str] = ()) -> Any:
    """Return a copy of a model that shares its weights, but for those of the names in `changed`, which are its own.

    None has a gradient; gradients of the caller's own are not touched either.

    Raises:
        ModelError: something is at work on the model: its calls go elsewhere.
    """
    if "forward" in vars(module):
        raise ModelError("this model is at work in a `with` block, or offloaded: leave the block first.")
    memo: dict[int, Any] = {id(buffer): buffer for buffer in module.buffers()}
    for name, weight in module.named_parameters():
        values = weight.detach().clone() if name in changed else weight.detach()
        memo[id(weight)] = torch.nn.Parameter(values, requires_grad=False)
    return copy.deepcopy(module, memo)


def trainable_twin(pipeline: Any, names: Iterable[str]) -> tuple[Any, dict[str, Tensor]]:
    """Return a float32 twin of a pipeline's UNet, and by name those of its weights that are to be trained."""
    chosen = set(names)
    is_float32 = pipeline.unet.dtype == torch.float32
    unet = twin_of(pipeline.unet, chosen) if is_float32 else float32_copy(pipeline.unet, pipeline._execution_device)
    trained = {name: weight.requires_grad_() for name, weight in unet.named_parameters() if name in chosen}
    if not trained:
        raise LearningError("nothing of this UNet is to be trained: expected one of Stable Diffusion's kind.")
    return unet, trained


def unet_with(pipeline: Any, weights: Mapping[str, Tensor]) -> Any:
    """Return a twin of a pipeline's UNet with other values for some weights, in its own dtype.

    Raises:
        ResidualError: a weight is none of this UNet's, or of another shape.
    """
    shapes = {name: weight.shape for name, weight in pipeline.unet.named_parameters()}
    for name, values in weights.items():
        if shapes.get(name) != values.shape:
            found = list(shapes[name]) if name in shapes else "no such weight"
            raise ResidualError(f"{name[:100]} has shape {list(values.shape)}, this UNet has {found}: learn on it.")
    unet = twin_of(pipeline.unet, weights)
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if name in weights:
                weight.copy_(weights[name])
    return unet


def pipeline_with(pipeline: Any, texts: Collection[str] = (), **parts: Any) -> Cones2Pipeline:
    """Return a pipeline with other parts in place of some, which knows the words of `texts` beside its own.

    Its UNet is always a twin, so that what is known of it stays apart from the caller's.
    """
    pipeline = unwrapped_pipeline(pipeline)
    facts, inner = facts_of(pipeline), copy.copy(pipeline)
    vars(inner).update({"unet": parts.pop("unet", None) or twin_of(pipeline.unet), **parts})
    if facts.lexicon is not None:
        new = {word for text in texts for word in unknown_words(text, facts.lexicon)}
        facts = facts.model_copy(update={"lexicon": facts.lexicon | new})
    set_facts(inner, facts)
    return Cones2Pipeline(inner)
