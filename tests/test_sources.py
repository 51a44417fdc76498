"""Where a residual comes from: a file before the library, the library before the examples."""

from pathlib import Path
from typing import Any

import pytest

from cones2.errors import LibraryError, ResidualError
from cones2.examples import EXAMPLES
from cones2.library import Library
from cones2.sources import find_by_hash, find_residual
from subjects_for_tests import residual_for


def test_a_file_a_name_or_an_example(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own, other = residual_for(tiny), residual_for(tiny, size=2.0)
    shipped = EXAMPLES["rex"].residual
    assert find_residual("rex").sha256 == shipped.sha256
    Library.open().add("rex", own)
    assert find_residual("rex").sha256 == own.sha256
    other.save(tmp_path / "rex")
    assert find_residual("rex").sha256 == find_residual(tmp_path / "rex").sha256 == other.sha256


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LibraryError, match="hugoo"):
        find_residual("hugoo")
    with pytest.raises(LibraryError, match="no name"):
        find_residual("no name")
    with pytest.raises(ResidualError, match=r"none\.safetensors"):
        find_residual(tmp_path / "none.safetensors")


def test_a_residual_is_found_by_its_hash(tiny: Any) -> None:
    own = residual_for(tiny)
    assert find_by_hash(own.sha256) is None
    Library.open().add("any", own)
    for residual in (own, EXAMPLES["rex"].residual):
        found = find_by_hash(residual.sha256)
        assert found is not None
        assert found.sha256 == residual.sha256
