"""mini's text encoder and UNet, the helpers of their training that do not ship, and the folder that does."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

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
        return codes.reshape(*thumbnails.shape[:-1], -1)


class TrainingHeads(nn.Module):
    """What helps training and is left out of the model.

    `code` turns an individual's thumbnail into what is added at its noun before the text encoder's last norm: it stands
    for the millions of names, breeds and brands by which Stable Diffusion's vectors reach individuals. `read` reads
    class, colour and pattern off a noun's vector.
    """

    def __init__(self) -> None:
        super().__init__()
        self.code = Coder()
        self.read = nn.Linear(WIDTH, len(CLASSES) + len(COLOURS) + 1 + len(PATTERNS))


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


def new_unet(channels: int) -> UNet2DConditionModel:
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
    """Everything that is trained together."""

    def __init__(self, folder: Path | None, channels: int) -> None:
        super().__init__()
        self.tokenizer = build_tokenizer(lexicon(), WINDOW)
        self.heads = TrainingHeads()
        if folder is None:
            self.text_encoder, self.unet = new_text_encoder(self.tokenizer), new_unet(channels)
            return
        self.text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
        self.unet = UNet2DConditionModel.from_pretrained(folder / "unet").float()
        self.heads.load_state_dict(
            {key: value.float() for key, value in load_file(folder / "training_heads.safetensors").items()}
        )

    def embed(self, input_ids: Tensor, code: Tensor) -> Tensor:
        """Embeddings `[batch, tokens, dim]`, with `code` of the same shape added before the last norm."""
        norm = self.text_encoder.final_layer_norm
        handle = norm.register_forward_pre_hook(lambda _, arguments: (arguments[0] + code,))
        try:
            return self.text_encoder(input_ids).last_hidden_state
        finally:
            handle.remove()


def save_model(folder: Path, mini: Mini, vae: AutoencoderKL, *, half: bool) -> None:
    """Write a folder that diffusers opens, and the training heads beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    dtype = torch.float16 if half else torch.float32
    scheduler = DDIMScheduler(**SCHEDULE)
    pipeline = StableDiffusionPipeline(
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
