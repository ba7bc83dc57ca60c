"""The training benchmark runs, and what must hold on any machine holds."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("bench_training.py")


def rows(part: str) -> dict[str, list[str]]:
    """The cells of the printed table by the first one of their row."""
    done = subprocess.run(
        [sys.executable, SCRIPT, "--quick", "--parts", part], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [line.strip("│").split("│") for line in done.stdout.splitlines() if "│" in line]
    return {line[0].strip(): [cell.strip() for cell in line[1:]] for line in lines}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_options_that_save_memory_do():
    table = rows("step")
    per_layer = {name: float(cells[2]) for name, cells in table.items() if cells[2]}
    full = per_layer["full, bfloat16"]
    assert per_layer["full, no average"] < per_layer["full, float32"]
    assert per_layer["full, bfloat16, checkpointing"] < full
    assert per_layer["LoRA 16, bfloat16"] < full
    assert per_layer["LoRA 16, bfloat16, offload"] <= per_layer["LoRA 16, bfloat16"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_cached_latents_are_read_faster_than_pictures():
    table = rows("loader")
    assert float(table["cached latents"][0]) > 2 * float(table["files: decode, scale, cut"][0])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_resume_is_measured():
    table = rows("resume")
    assert float(table["write a checkpoint"][0]) > 0
    assert float(table["the same, resumed from the checkpoint"][0]) > 0
