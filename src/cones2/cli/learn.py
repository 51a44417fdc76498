"""`cones2 learn`: a residual from photos."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from cones2.checking import is_name
from cones2.cli.console import print_json, say
from cones2.cli.options import MORE, Device, Dtype, Json, Model, ModelConfig, Replace, SaveMemory
from cones2.cli.progress import waiting


def learn(
    photos: Annotated[
        Path, typer.Argument(help="A folder of 3 to 5 photos of the subject, or one photo.", metavar="PHOTOS")
    ],
    class_word: Annotated[str, typer.Option("--class", help="What it is, in a word or two.", metavar="WORD")],
    out: Annotated[Path, typer.Option(help="The residual to write: NAME.safetensors.", metavar="FILE")],
    model: Model = "mini",
    steps: Annotated[int | None, typer.Option(help="How many; default: the recipe's.", metavar="N")] = None,
    seed: Annotated[int, typer.Option(help="For all that is drawn by chance.", metavar="N")] = 0,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="paper, mini, direct or a .toml file; default: what suits the model.", metavar="NAME_OR_TOML"
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted learning stopped.")] = False,
    replace: Replace = False,
    masks: Annotated[
        Path | None,
        typer.Option(
            help="Where the subject is: a grey picture for each photo, of its name, white on the subject.",
            metavar="DIR",
            rich_help_panel=MORE,
        ),
    ] = None,
    captions: Annotated[
        Path | None,
        typer.Option(help="Your own captions, one a line, each with WORD.", metavar="FILE", rich_help_panel=MORE),
    ] = None,
    preview: Annotated[
        int | None,
        typer.Option(help="Draw it every N steps, into NAME-previews.", min=1, metavar="N", rich_help_panel=MORE),
    ] = None,
    clip: Annotated[
        Path | None,
        typer.Option(
            help="Measure the previews by the CLIP model in this folder; mini's are, by its judge.",
            metavar="DIR",
            rich_help_panel=MORE,
        ),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            help="Stop after N previews that are no more like the photos, and keep the best.",
            min=1,
            metavar="N",
            rich_help_panel=MORE,
        ),
    ] = None,
    tensorboard: Annotated[
        Path | None, typer.Option(help="Curves and previews for TensorBoard.", metavar="DIR", rich_help_panel=MORE)
    ] = None,
    wandb: Annotated[
        str | None,
        typer.Option(help="Curves and previews for Weights & Biases.", metavar="PROJECT", rich_help_panel=MORE),
    ] = None,
    model_config: ModelConfig = None,
    save_memory: SaveMemory = False,
    device: Device = None,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Learn a subject from its photos, and keep it in a file of about 5 KB.

    Example: cones2 learn photos/rex --class dog --out rex.safetensors
    """
    with waiting("starting"):
        from cones2.backbones import open_backbone
        from cones2.cli.learn_order import LearnOrder
        from cones2.cli.watching import Looks

        looks = Looks(preview, clip, patience, tensorboard, wandb)
        order = LearnOrder.check(
            photos,
            class_word,
            out=out,
            recipe=recipe,
            steps=steps,
            captions=captions,
            masks=masks,
            replace=replace,
        )
    with waiting(f"opening {model}"):
        backbone = open_backbone(model, device=device, dtype=dtype, model_config=model_config)
    report = order.give(backbone, seed=seed, resume=resume, save_memory=save_memory, looks=looks)
    if as_json:
        print_json(report)
    else:
        say(f"{out}: {class_word!r} learned from {len(order.photos)} photos in {report['seconds']:.0f} s.")
        if report["steps"] < report["last_step"]:
            say(f"Kept: step {report['steps']} of {report['last_step']}, whose preview is the most like the photos.")
        if report["displacement"] is not None:
            share, value = 100 * report["displacement"], report["preservation"]
            say(f"Other words moved by {share:.1f} % of their length (Eq. 3: {value:.3g}); near 0 is best.")
        say(f"Place it with: {_next_command(out, model, model_config)}")


def _next_command(residual: Path, model: str, model_config: str | None) -> str:
    name = residual.stem if is_name(residual.stem) else "it"
    command = ["cones2", "compose", f"a {{{name}}} on the beach", "--subject", f"{name}={residual}"]
    command += ["--model", model] if model != "mini" else []
    command += ["--model-config", model_config] if model_config is not None else []
    return shlex.join([*command, "--out", "pictures"])
