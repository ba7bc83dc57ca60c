"""The table of all tasks covers the weights that come with the package, and measures them."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("bench_tasks.py")


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_tasks", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_weights_have_a_call(bench):
    shipped = bench.shipped()
    assert "super-resolution" in {task for task, _, _ in shipped}
    assert {kind for _, _, kind in shipped} <= set(bench.CALLS)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_task_is_measured(bench, tmp_path):
    file = tmp_path / "figures.json"
    subprocess.run([sys.executable, SCRIPT, "--quick", "--output", file], check=True, capture_output=True)
    figures = json.loads(file.read_text())
    assert [row["weights"] for row in figures] == [folder.name for _, folder, _ in bench.shipped()]
    for row in figures:
        assert 0 < row["seconds"] < 600, row
        assert row["loaded"] <= row["peak"] < 8192, row
