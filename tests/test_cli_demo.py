"""`cones2 demo`, at tiny settings."""

from pathlib import Path

from PIL import Image

from command import files_in, refused, run
from cones2.cli.demo import BOXES
from cones2.examples import EXAMPLES
from cones2.png import read_record
from cones2.residual import Residual


def test_it_learns_draws_and_shows_everything(tmp_path: Path) -> None:
    out = tmp_path / "new" / "demo"
    shown = run("demo", "-o", out, "--learn-steps", 1, "--steps", 1).stdout
    assert str(out / "contact-sheet.png") in shown.replace("\n", "")
    pictures = {f"{kind}-layout-seed{seed}.png" for kind in ("with", "without") for seed in range(4)}
    residuals = {f"{name}.safetensors" for name in BOXES}
    assert files_in(out) == {"contact-sheet.png", "layout.json", *pictures, *residuals}
    assert Residual.load(out / "momo.safetensors").sha256 == EXAMPLES["momo"].residual.sha256
    assert Residual.load(out / "rex.safetensors").recipe["steps"] == 1
    composed, free = (read_record(out / f"{kind}-layout-seed1.png") for kind in ("with", "without"))
    assert (composed["seed"], composed["guidance_scale"], free["layout"]) == (1, 4.0, None)
    assert list(composed["layout"]["regions"]) == list(BOXES)
    with Image.open(out / "contact-sheet.png") as sheet:
        assert sheet.width > 512
    assert "--replace" in refused("demo", "-o", out)
    (tmp_path / "file").touch()
    assert "file" in refused("demo", "--out", tmp_path / "file" / "demo")
