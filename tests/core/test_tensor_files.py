"""Who may read a file of tensors."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from polydit.core.tensor_files import save_tensors


@pytest.mark.skipif(os.name != "posix", reason="needs a umask")
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_the_umask_says_who_may_read_it(tmp_path: Path, umask: int):
    path, before = tmp_path / "a.safetensors", os.umask(umask)
    try:
        save_tensors({"a": torch.zeros(2)}, path)
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask
        path.chmod(0o604)
        save_tensors({"a": torch.ones(2)}, path)
        assert path.stat().st_mode & 0o777 == 0o604, "a file that was there keeps its mode"
    finally:
        os.umask(before)


def test_views_of_one_tensor_are_read_back(tmp_path: Path):
    whole = torch.arange(12.0).view(3, 4)
    save_tensors({"rows": whole[:2], "turned": whole.T}, tmp_path / "a.safetensors", {"made by": "a test"})
    back = load_file(tmp_path / "a.safetensors")
    assert torch.equal(back["rows"], whole[:2])
    assert torch.equal(back["turned"], whole.T)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"made by": "a test"}
