"""The two commands of the project and what continuous integration calls."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


# What an outer make, which may be running this, would hand down.
CLEAN = {
    name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")
}


def dry_run(root: Path, *words: str) -> str:
    return subprocess.run(
        ["make", "-n", "--always-make", *words],
        cwd=root,
        env=CLEAN,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout


@needs_make
@pytest.mark.parametrize("target", ["demo", "test", "test-all", "bench", "lint", "serve"])
def test_targets_set_up_their_environment_first(root: Path, target: str):
    lines = dry_run(root, target, "VENV=somewhere").splitlines()
    install = next(number for number, line in enumerate(lines) if "pip install" in line)
    assert any("-m venv somewhere" in line for line in lines[:install])
    assert install < len(lines) - 1


@needs_make
def test_a_python_without_venv_is_one_line(root: Path, tmp_path: Path):
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\ncase "$*" in *ensurepip*) exit 1;; esac\nexit 0\n')
    fake.chmod(0o755)
    done = subprocess.run(
        ["make", "-C", str(root), f"PYTHON={fake}", f"VENV={tmp_path}/new", "install"],
        capture_output=True,
        text=True,
        check=False,
        env=CLEAN,
        timeout=60,
    )
    assert done.returncode != 0
    assert "has no venv module; on Debian and Ubuntu: apt-get install python3-venv" in done.stderr
    assert not (tmp_path / "new").exists()


@needs_make
def test_an_old_python_is_one_line(root: Path, tmp_path: Path):
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.9.2 && exit 0\nexit 1\n')
    fake.chmod(0o755)
    done = subprocess.run(
        ["make", "-C", str(root), f"PYTHON={fake}", f"VENV={tmp_path}/new", "install"],
        capture_output=True,
        text=True,
        check=False,
        env=CLEAN,
        timeout=60,
    )
    assert "is Python 3.9.2; Python 3.11 or newer is needed" in done.stderr


def test_continuous_integration_calls_make_test(root: Path):
    script = root / ".ci/run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=20)
    assert script.read_text(encoding="utf-8").rstrip().endswith("make test")
