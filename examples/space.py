"""A demo for a Space of the Hub, with places typed as JSON; needs gradio. The product is `cones2 studio`."""

import json
from typing import Any

import gradio as gr

import cones2
from cones2.errors import Cones2Error
from cones2.examples import EXAMPLES

PIPE = cones2.Cones2Pipeline.from_pretrained("mini")
for name, example in EXAMPLES.items():
    PIPE.load_subject(name, example)
PLACES = '{"rex": [0.04, 0.45, 0.5, 0.91], "ball": [0.55, 0.5, 0.9, 0.9]}'


def draw(prompt: str, places: str, words: str, seed: float, scale: float) -> Any:
    """Draw a picture; whatever is wrong with it is said in one line."""
    try:
        layout = cones2.Layout.of(json.loads(places)) if places.strip() else None
        untaught = dict(pair.split("=") for pair in words.split() if pair.count("=") == 1)
        return PIPE(prompt, layout, subjects=untaught, seed=int(seed), layout_scale=scale).images[0]
    except (Cones2Error, ValueError) as error:
        raise gr.Error(str(error)) from error


demo = gr.Interface(
    draw,
    [
        gr.Textbox("a {rex} and a {ball} on the beach", label="Prompt; subjects in braces"),
        gr.Code(PLACES, language="json", label="Places: xmin, ymin, xmax, ymax in 0..1"),
        gr.Textbox("ball=ball", label="Untaught words: NAME=WORD"),
        gr.Number(0, precision=0, minimum=0, label="Seed"),
        gr.Slider(0, 3, 1, label="Layout scale"),
    ],
    gr.Image(format="png", label="Picture"),
    title="cones2: your subjects, each where you say",
    description=f"Subjects that are here: {', '.join(EXAMPLES)}. The model draws toys, not photos.",
    flagging_mode="never",
)

if __name__ == "__main__":
    demo.queue(max_size=16).launch(run_history=False, server_name="0.0.0.0")
