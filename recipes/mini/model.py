"""mini's text encoder and UNet, the helpers of their training that do not ship, and the folder that does."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from parts import Autoencoder, UNet
from tokenizer import build_tokenizer
from vocabulary import CLASSES, COLOURS, PATTERNS, lexicon
from world import THUMBNAIL

WINDOW = 48
WIDTH = 192
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "v_prediction",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 1,
    "timestep_spacing": "trailing",
}


class Coder(nn.Module):
    """A thumbnail's code: a linear reading of it at half its size, and what a small network sees in it.

    The network can say "striped" or "wide" wherever the stripes are; a linear reading must spell out every pixel.
    """

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(THUMBNAIL**2, WIDTH)
        self.network = nn.Sequential(
            nn.Conv2d(4, 32, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(64, 96, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(96 * (THUMBNAIL // 4) ** 2, WIDTH),
        )

    def forward(self, thumbnails: Tensor) -> Tensor:
        """Codes `[..., width]` of flattened thumbnails `[..., 4 * size * size]`."""
        pictures = thumbnails.reshape(-1, 4, THUMBNAIL, THUMBNAIL)
        codes = self.linear(avg_pool2d(pictures, 2).flatten(1)) + self.network(pictures)
        coded: Tensor = codes.reshape(*thumbnails.shape[:-1], -1)
        return coded


class TrainingHeads(nn.Module):
    """What helps training and is left out of the model.

    `code` turns an individual's thumbnail into what is added at its noun before the text encoder's last norm: it stands
    for the millions of names, breeds and brands by which Stable Diffusion's vectors reach individuals. `read` reads
    class, colour and pattern off a noun's vector, and `warp` the individual's proportions.
    """

    def __init__(self) -> None:
        super().__init__()
        self.code = Coder()
        self.read = nn.Linear(WIDTH, len(CLASSES) + len(COLOURS) + 1 + len(PATTERNS))
        self.warp = nn.Linear(WIDTH, 3)


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A CLIP text encoder, 192 wide and 4 layers deep."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=WINDOW,
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    return CLIPTextModel(config)


def new_unet(channels: int) -> UNet:
    """A UNet with cross-attention on each of its three levels."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=channels,
        out_channels=channels,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(64, 128, 192),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=(2, 4, 6),  # diffusers reads this as the number of heads
        norm_num_groups=16,
        use_linear_projection=True,
    )


class Mini(nn.Module):
    """Everything that is trained together.

    Attributes:
        kinds: a caption of each class: `[classes, tokens]`.
        places: where in them each class word stands: `[nouns, classes * tokens]`, 0 or 1.
        nouns: the class words' token ids.
    """

    kinds: Tensor
    places: Tensor
    nouns: Tensor

    def __init__(self, folder: Path | None, channels: int) -> None:
        super().__init__()
        self.tokenizer = build_tokenizer(lexicon(), WINDOW)
        self.heads = TrainingHeads()
        for name, value in zip(("kinds", "places", "nouns"), class_captions(self.tokenizer), strict=True):
            self.register_buffer(name, value, persistent=False)
        if folder is None:
            self.text_encoder, self.unet = new_text_encoder(self.tokenizer), new_unet(channels)
            return
        self.text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
        self.unet = UNet2DConditionModel.from_pretrained(folder / "unet").float()
        self.heads.load_state_dict(
            {key: value.float() for key, value in load_file(folder / "training_heads.safetensors").items()},
            strict=False,  # heads that came later begin anew
        )

    def hidden(self, input_ids: Tensor) -> Tensor:
        """What the text encoder's last norm gets: `[batch, tokens, dim]`.

        As `CLIPTextModel` computes it, but with nothing that a CUDA graph can't hold: a product looks the tokens up.
        """
        encoder, length = self.text_encoder, input_ids.shape[1]
        table = encoder.embeddings.token_embedding.weight
        chosen = (input_ids[..., None] == torch.arange(len(table), device=table.device)).to(table.dtype)
        states = chosen @ table + encoder.embeddings.position_embedding.weight[:length]
        for layer in encoder.encoder.layers:
            states = layer(states, None, is_causal=True)
        return states

    def norm(self, hidden: Tensor) -> Tensor:
        """The text encoder's last norm."""
        normed: Tensor = self.text_encoder.final_layer_norm(hidden)
        return normed


def class_captions(tokenizer: CLIPTokenizer) -> tuple[Tensor, Tensor, Tensor]:
    """A caption of each class, `[classes, tokens]`; where each class word stands in them, 0 or 1; and its token id."""
    captions = [tokenizer(f"a photo of {kind.phrase()}")["input_ids"] for kind in CLASSES]
    length = max(map(len, captions))
    ids = torch.tensor([caption + [tokenizer.eos_token_id] * (length - len(caption)) for caption in captions])
    found = [
        (row, len(caption) - 1 - back)
        for row, caption in enumerate(captions)
        for back in range(len(CLASSES[row].word.split()), 0, -1)
    ]
    rows, columns = torch.tensor(found).T
    places = torch.zeros(len(rows), *ids.shape)
    places[torch.arange(len(rows)), rows, columns] = 1
    return ids, places.flatten(1), ids[rows, columns]


def save_model(folder: Path, mini: Mini, vae: Autoencoder, *, half: bool) -> None:
    """Write a folder that diffusers opens, and the training heads beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    dtype = torch.float16 if half else torch.float32
    scheduler = DDIMScheduler(**SCHEDULE)
    pipeline: Any = StableDiffusionPipeline(
        vae=vae.to(dtype=dtype),
        text_encoder=mini.text_encoder,
        tokenizer=mini.tokenizer,
        unet=mini.unet.to(dtype=dtype),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, max_shard_size="14MB")
    for path in folder.glob("*/config.json"):  # the libraries note which folder a part was read from
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)
        path.write_text(json.dumps(config, indent=2) + "\n")
    heads = {key: value.to(dtype).contiguous() for key, value in mini.heads.state_dict().items()}
    save_file(heads, folder / "training_heads.safetensors")
    facts = {
        "guidance_scale": 4.0,
        "recipe": "direct",
        "draws": "drawings of ten kinds of things",
        "class_words": [word.word for word in CLASSES],
        "lexicon": [word for word in lexicon() if word.isalpha()],
    }
    (folder / "cones2.json").write_text(json.dumps(facts, indent=2) + "\n")
