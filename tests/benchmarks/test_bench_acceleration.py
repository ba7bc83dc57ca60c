"""The bench of the caches runs, and its small network is compared with itself."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("bench_acceleration.py")


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_acceleration", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_shapes_are_drawn_from_their_seed(bench):
    labels = torch.arange(8)
    first, second = (bench.shapes(labels, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == (8, 3, 16, 16)
    assert first.abs().max() <= 1
    assert all(picture.flatten(1).unique(dim=1).shape[1] == 2 for picture in first)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_runs(bench, tmp_path, monkeypatch, capsys):
    words = ["x", "--quick", "--clock", "cpu", "--threads", "1", "--output", str(tmp_path)]
    monkeypatch.setattr("sys.argv", words)
    bench.main()
    content = json.loads((tmp_path / "acceleration.json").read_text())
    assert (tmp_path / "acceleration.png").is_file()
    rows = {(row["method"], row["network"]): row for row in content["methods"]}
    assert rows["interval 1", "native"]["error"] == 0
    for order in range(3):
        ours, theirs = (
            rows[name, "diffusers"]
            for name in (f"TaylorSeer O={order}, its steps", f"diffusers TaylorSeer O={order}")
        )
        assert ours["full"] == theirs["full"]
        assert ours["error"] == pytest.approx(theirs["error"], rel=1e-3)
    assert rows["TaylorSeer O=1", "native"]["gain"] > 1.3
    assert "| TaylorSeer O=1" in capsys.readouterr().out
