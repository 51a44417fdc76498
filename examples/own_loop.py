"""A sampling loop of one's own around `conditioned`: the denoiser and the scheduler are called by hand."""

import torch

import cones2

PROMPT = "a {rex} and a {ball} on the beach"
LAYOUT = {"rex": (0.04, 0.45, 0.5, 0.91), "ball": (0.55, 0.5, 0.9, 0.9)}


@torch.no_grad()
def main(steps: int = 30, guidance_scale: float = 4.0) -> None:
    """Write own-loop.png."""
    pipeline = cones2.Cones2Pipeline.from_pretrained("mini").pipeline  # or any Stable Diffusion pipeline of diffusers'
    unet, vae, scheduler = pipeline.unet, pipeline.vae, pipeline.scheduler
    subjects = {"rex": cones2.EXAMPLES["rex"], "ball": "ball"}
    scheduler.set_timesteps(steps)
    side = unet.config.sample_size
    latents = torch.randn(1, unet.config.in_channels, side, side, generator=torch.Generator().manual_seed(0))
    latents = latents.to(unet.device, unet.dtype) * scheduler.init_noise_sigma
    with cones2.conditioned(pipeline, PROMPT, subjects=subjects, layout=LAYOUT) as inputs:
        text = torch.cat([inputs["negative_prompt_embeds"], inputs["prompt_embeds"]])
        for timestep in scheduler.timesteps:
            rows = scheduler.scale_model_input(torch.cat([latents, latents]), timestep)
            unconditional, conditional = unet(rows, timestep, text).sample.chunk(2)
            noise = unconditional + guidance_scale * (conditional - unconditional)
            latents = scheduler.step(noise, timestep, latents).prev_sample
    decoded = vae.decode(latents / vae.config.scaling_factor).sample
    pipeline.image_processor.postprocess(decoded)[0].save("own-loop.png")


if __name__ == "__main__":
    main()
