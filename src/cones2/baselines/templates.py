"""The sentences of Textual Inversion, under which a photo of an object may stand (arXiv:2208.01618, App. C)."""

from typing import Any

from cones2.captions import filled
from cones2.models import facts_of
from cones2.prompts import unknown_words

TEMPLATES = (
    "a photo of {a} {subject}",
    "a rendering of {a} {subject}",
    "a cropped photo of the {subject}",
    "the photo of {a} {subject}",
    "a photo of {a} clean {subject}",
    "a photo of {a} dirty {subject}",
    "a dark photo of the {subject}",
    "a photo of my {subject}",
    "a photo of the cool {subject}",
    "a close-up photo of {a} {subject}",
    "a bright photo of the {subject}",
    "a cropped photo of {a} {subject}",
    "a photo of the {subject}",
    "a good photo of the {subject}",
    "a photo of one {subject}",
    "a close-up photo of the {subject}",
    "a rendition of the {subject}",
    "a photo of the clean {subject}",
    "a rendition of {a} {subject}",
    "a photo of {a} nice {subject}",
    "a good photo of {a} {subject}",
    "a photo of the nice {subject}",
    "a photo of the small {subject}",
    "a photo of the weird {subject}",
    "a photo of the large {subject}",
    "a photo of {a} cool {subject}",
    "a photo of {a} small {subject}",
)
"""27 sentences, a subset of CLIP's for ImageNet."""


def template_captions(pipeline: Any, text: str) -> tuple[str, ...]:
    """Return the sentences with a subject's words; of a model of a small world, those whose words it knows."""
    lexicon = facts_of(pipeline).lexicon
    captions = dict.fromkeys(filled(template, text) for template in TEMPLATES)
    if lexicon is None:
        return tuple(captions)
    own = {*lexicon, *unknown_words(text, ())}
    return tuple(caption for caption in captions if not unknown_words(caption, own))
