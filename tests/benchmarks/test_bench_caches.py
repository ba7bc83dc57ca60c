"""The table of caches runs, and a cache is as near to no cache as it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("bench_caches.py")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_caches_of_super_resolution(tmp_path):
    file = tmp_path / "figures.json"
    words = ["--quick", "--only", "super-resolution", "--steps", "8", "--output", file]
    done = subprocess.run([sys.executable, SCRIPT, *words], check=True, capture_output=True, text=True)
    rows = {row["cache"]: row for row in json.loads(file.read_text())}
    assert "refused" in rows["deepcache"]
    for name in ("taylorseer", "fora", "block-span"):
        assert rows[name]["psnr"] > 35, rows[name]
        assert rows[name]["computed"]["computed"] < 0.7 * rows[name]["computed"]["of"]
        assert name in done.stdout
