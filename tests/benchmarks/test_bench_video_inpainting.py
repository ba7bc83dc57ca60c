"""What the benchmark promises of long files holds."""

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_memory_stays_flat_over_a_long_file():
    script = Path(__file__).with_name("bench_video_inpainting.py")
    done = subprocess.run(
        [sys.executable, script, "--length", "1000"], capture_output=True, text=True, check=True
    )
    rows = [tuple(map(int, row)) for row in re.findall(r"\| (\d+) \| (\d+) \|", done.stdout)]
    assert [frames for frames, _ in rows] == [250, 500, 750, 1000]
    assert rows[-1][1] < rows[0][1] + 60, rows  # a thousand frames and masks are 25 MB, in floats 100
