"""Fixtures of the whole suite."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A shell without job control starts what it puts into the background with Ctrl-C ignored, and so would be every command
# that these tests start and stop by Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out what the machine cannot do, also where every mark was asked for."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs an accelerator")


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def eighth_task(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with an installed distribution outside the repository that registers the task ``dummy``.

    It is importable in this process while the fixture lives; put it on PYTHONPATH for others.
    """
    site = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "tests/integration/eighth_task/polydit_dummy", site / "polydit_dummy")
    info = site / "polydit_dummy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: polydit-dummy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[polydit.tasks]\ndummy = polydit_dummy:TASK\n")
    (info / "RECORD").write_text("")
    sys.path.insert(0, str(site))
    yield site
    sys.path.remove(str(site))
    for name in [name for name in sys.modules if name.partition(".")[0] == "polydit_dummy"]:
        del sys.modules[name]


@pytest.fixture(scope="session")
def dummy_weights(eighth_task: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved pipeline of the dummy task."""
    import torch
    from polydit_dummy.pipeline import DuskPipeline

    from polydit.core.backbones import DiT

    torch.manual_seed(0)
    transformer = DiT(input_size=4, patch_size=2, in_channels=3, hidden_size=16, depth=2, num_heads=2)
    folder = tmp_path_factory.mktemp("weights") / "dusk"
    DuskPipeline(transformer).save_pretrained(folder)
    return folder


@pytest.fixture
def polydit() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command in a process of its own: ``polydit("list", env={...}, cwd=...)``."""

    def run(
        *words: object, env: dict[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "polydit.core.cli", *map(str, words)],
            env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The system's chromium, one for all tests of this process: playwright cannot be started twice."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as driver:
        arguments = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        browser = driver.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()
