"""``make demo``, with a tiny pipeline and a LoRA that is there already in place of the minute of training."""

from __future__ import annotations

import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from polydit.core.cli import main as polydit
from polydit.demos import make_demo


@pytest.fixture
def commands(weights: Path, lora: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What was run, in order."""
    seen: list[list[str]] = []

    def command(words: list[str]) -> int:
        seen.append(words)
        if words[1] == "predict":
            return polydit([*words, "--weights", str(weights)])
        given = dict(zip(words[2::2], words[3::2], strict=True))
        run = Path(given["--output"], "super_resolution", given["--name"])
        assert not run.exists(), "fit refuses to write into an earlier run"
        run.mkdir(parents=True)
        shutil.copy(lora, run / "lora.safetensors")
        return 0

    monkeypatch.setattr(make_demo, "polydit", command)
    return seen


def test_it_writes_what_it_announces(
    commands: list[list[str]],
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "demo_output"
    (output / "run/super_resolution/text").mkdir(parents=True)  # an earlier demo's
    make_demo.main()
    assert [words[1] for words in commands] == ["predict", "predict", "fit", "predict"]
    fit = commands[2]
    assert all((root / word).is_file() for key, word in pairwise(fit) if key == "--config")
    assert len(list((output / "pages/train").glob("*.png"))) == 6

    text = capsys.readouterr().out
    assert (
        "$ polydit super-resolution predict --input demo_output/low --output demo_output/photographs" in text
    )
    for pattern in re.findall(r"^  (demo_output/\S+)", text, re.M):
        assert list(tmp_path.glob(pattern)), f"{pattern} is announced and not there"
    assert len(list(output.glob("*_sheet.png"))) == 5
    page = (output / "index.html").read_text(encoding="utf-8")
    shown = re.findall(r'<img [^>]*src="([^"]+)"', page)
    assert len(shown) == 8
    for before, after in zip(shown[::2], shown[1::2], strict=True):
        assert Image.open(output / before).size == Image.open(output / after).size
    table = (output / "results.md").read_text(encoding="utf-8")
    for name in ("chateau", "rocks", "toucan", "page_101", "page_102"):
        assert f"| {name} " in table
        assert f"<td>{name}</td>" in page


def test_a_command_that_fails_ends_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(make_demo, "polydit", lambda words: 2)
    with pytest.raises(SystemExit) as caught:
        make_demo.main(tmp_path)
    assert caught.value.code == 2
    assert not (tmp_path / "index.html").exists()


@pytest.mark.parametrize(("words", "code"), [(["--help"], 0), (["--nothing"], 2), (["one", "two"], 2)])
def test_options_are_no_folders(words: list[str], code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(make_demo, "polydit", lambda words: pytest.fail("ran"))
    with pytest.raises(SystemExit) as caught:
        make_demo.command_line(words)
    assert caught.value.code == code
    assert not list(tmp_path.iterdir())


def test_what_the_user_can_mend_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "taken").write_text("a file")
    assert make_demo.command_line([str(tmp_path / "taken")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
