import os
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from cones2.errors import LearningError, OutputError
from cones2.learning.checkpoints import Checkpoints, is_waiting, remove_checkpoints

SETTINGS: dict[str, Any] = {"steps": 10, "learning_rate": 1e-4, "class word": "dog"}


def state(step: int) -> dict[str, torch.Tensor]:
    return {"parameter.0": torch.full((3, 2), float(step)), "step.0": torch.tensor(float(step))}


def saved(folder: Path, *steps: int) -> Checkpoints:
    checkpoints = Checkpoints(folder, SETTINGS)
    with checkpoints.held():
        for step in steps:
            checkpoints.save(step, state(step))
    return checkpoints


def assert_loads(checkpoints: Checkpoints, step: int) -> None:
    found, tensors = checkpoints.load()
    assert found == step
    assert tensors.keys() == state(step).keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, state(step)[name])


def test_nothing_there(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path, SETTINGS).load() == (0, {})


def test_the_newest_is_loaded_and_two_are_kept(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 2, 4, 10)
    assert_loads(checkpoints, 10)
    kept = ["step-00000004.json", "step-00000004.safetensors", "step-00000010.json", "step-00000010.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", *kept]


@settings(max_examples=30)
@given(st.data())
def test_a_damaged_newest_is_passed_over(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("learning")
    checkpoints = saved(folder, 2, 4)
    path = folder / "step-00000004.safetensors"
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans(), "truncate"):
        del content[place:]
    else:
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    assert_loads(checkpoints, 2)


@pytest.mark.parametrize("manifest", [b"", b"{", b"[]", b"{}", b'{"format": 1}', b"\xff"])
def test_a_damaged_manifest_is_passed_over(tmp_path: Path, manifest: bytes) -> None:
    checkpoints = saved(tmp_path, 2, 4)
    (tmp_path / "step-00000004.json").write_bytes(manifest)
    assert_loads(checkpoints, 2)


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_half_a_checkpoint_is_passed_over(tmp_path: Path, suffix: str) -> None:
    checkpoints = saved(tmp_path, 2, 4)
    (tmp_path / f"step-00000004{suffix}").unlink()
    assert_loads(checkpoints, 2)


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_pipe_in_place_of_a_checkpoint_is_passed_over(tmp_path: Path, suffix: str) -> None:
    checkpoints = saved(tmp_path, 2, 4)
    path = tmp_path / f"step-00000004{suffix}"
    path.unlink()
    os.mkfifo(path)
    assert_loads(checkpoints, 2)


def test_other_settings_are_named(tmp_path: Path) -> None:
    saved(tmp_path, 2)
    with pytest.raises(LearningError, match=r"learning_rate is 0.001, but it began with 0.0001") as caught:
        Checkpoints(tmp_path, SETTINGS | {"learning_rate": 1e-3}).load()
    assert "\n" not in str(caught.value)


def test_delete_leaves_other_files(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 2, 4)
    others = [".mine.part", "notes.txt", "step-100-preview.png", "step-100.json", "step-photos.safetensors"]
    for name in others:
        (tmp_path / name).touch()
    checkpoints.delete()
    assert checkpoints.load() == (0, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["lock", *others])
    with checkpoints.held():
        checkpoints.save(2, state(2))
    assert {path.name for path in tmp_path.iterdir()} > set(others)


def test_what_a_killed_learner_was_writing_is_swept_away(tmp_path: Path) -> None:
    (tmp_path / ".0123456789abcdef.part").touch()
    with Checkpoints(tmp_path, SETTINGS).held():
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_two_learners_in_one_folder(tmp_path: Path) -> None:
    first, second = Checkpoints(tmp_path, SETTINGS), Checkpoints(tmp_path, SETTINGS)
    with first.held(), pytest.raises(LearningError, match="another learner"):
        second.held().__enter__()
    with second.held():
        pass


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(OutputError, match="lock"):
        Checkpoints(tmp_path, SETTINGS).held().__enter__()


def test_only_a_folder_that_nobody_works_in_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / ".rex.learning"
    checkpoints = Checkpoints(folder, SETTINGS)
    with checkpoints.held():
        remove_checkpoints(folder)
        checkpoints.save(1, {"parameter.0": torch.zeros(1)})
    assert list(folder.glob("step-*.json"))
    remove_checkpoints(folder)
    remove_checkpoints(folder)  # nor does it mind that there is none
    remove_checkpoints(tmp_path / "absent" / ".rex.learning")
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_learning_waits_until_its_file_is_written(tmp_path: Path) -> None:
    folder, residual = tmp_path / ".rex.learning", tmp_path / "rex.safetensors"
    assert not is_waiting(folder, residual)
    assert not folder.exists()
    saved(folder)
    assert not is_waiting(folder, residual)  # it was stopped before its first checkpoint
    saved(folder, 1)
    assert is_waiting(folder, residual)
    residual.touch()
    os.utime(residual, ns=(0, 0))  # one that is being replaced
    assert is_waiting(folder, residual)
    residual.touch()  # killed before it removed the folder
    assert not is_waiting(folder, residual)
    with Checkpoints(folder, SETTINGS).held(), pytest.raises(LearningError, match="another learner"):
        is_waiting(folder, residual)


@pytest.mark.parametrize("target", ["mine", "missing"])
def test_a_linked_folder_is_not_followed(tmp_path: Path, target: str) -> None:
    folder, mine = tmp_path / ".rex.learning", tmp_path / "mine"
    saved(mine, 1)
    before = {path.name: path.read_bytes() for path in mine.iterdir()}
    folder.symlink_to(tmp_path / target)
    with pytest.raises(OutputError, match=r"\.rex\.learning is a link"):
        Checkpoints(folder, SETTINGS).held().__enter__()
    with pytest.raises(OutputError, match=r"\.rex\.learning is a link"):
        is_waiting(folder, tmp_path / "rex.safetensors")
    remove_checkpoints(folder)
    assert folder.is_symlink()
    assert {path.name: path.read_bytes() for path in mine.iterdir()} == before
    assert not (tmp_path / "missing").exists()
