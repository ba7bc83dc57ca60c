"""`polydit <task> check`: every problem of a config and its data, in one run and before a step."""

from __future__ import annotations

from pathlib import Path

import pytest

from polydit.core.cli import main


def problems(text: str) -> list[str]:
    return [line.removeprefix("problem: ") for line in text.splitlines() if line.startswith("problem: ")]


def test_a_missing_folder_is_the_one_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)  # where there is no data/
    assert main(["super-resolution", "check", "--config", "configs/super_resolution/small.yaml"]) == 2
    captured = capsys.readouterr()
    assert len(problems(captured.out)) == 1, captured.out
    assert "data/corpus" in problems(captured.out)[0]
    assert captured.err == ""
