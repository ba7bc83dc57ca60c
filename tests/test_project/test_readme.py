"""The commands that the documents show are commands that exist, with options that exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from polydit.core.cli import main
from polydit.core.commands import Parser

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("tasks/*/README.md"))]


def blocks(document: Path, *languages: str) -> Iterator[str]:
    for language, body in re.findall(
        r"^```(\w*)\n(.*?)^```", document.read_text(encoding="utf-8"), re.M | re.S
    ):
        if language in languages:
            yield body


def commands() -> Iterator[tuple[Path, str]]:
    """Lines of shell blocks, continuation lines joined, without prompts and comments."""
    for document in DOCUMENTS:
        for body in blocks(document, "bash", "sh", "console", "shell"):
            for line in body.replace("\\\n", " ").splitlines():
                line = line.strip().removeprefix("$ ")
                if (
                    line.startswith(("polydit ", "make "))
                    or "/polydit " in line.split("#")[0].split("|")[0][:40]
                ):
                    yield document, line


COMMANDS = [
    pytest.param(line, id=f"{document.relative_to(ROOT)}: {line[:60]}") for document, line in commands()
]


class Parsed(Exception):
    """The words were understood."""


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_is_understood(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
        assert {word for word in words[1:] if "=" not in word} <= set(targets)
        return
    parse = Parser.parse_args

    def parse_only(self: Parser, *arguments: object) -> None:
        parse(self, *arguments)
        raise Parsed

    monkeypatch.setattr(Parser, "parse_args", parse_only)
    monkeypatch.chdir(ROOT)
    if len(words) > 2 and words[2] in ("check", "fit", "validate", "test"):
        from polydit.core.training.cli import TaskCLI

        def understood(self: TaskCLI) -> None:
            raise Parsed

        monkeypatch.setattr(TaskCLI, "instantiate_classes", understood)
    main(words[1:])
    complaint = capsys.readouterr().err
    assert "unexpected Parsed" in complaint or not complaint, complaint


PYTHON = [
    pytest.param(body, id=f"{document.relative_to(ROOT)}: {body.strip().splitlines()[0][:60]}")
    for document in DOCUMENTS
    for body in blocks(document, "python")
]


@pytest.mark.parametrize("body", PYTHON)
def test_a_python_example_compiles_and_its_imports_exist(body: str):
    compile(body, "README", "exec")
    imports = [line for line in body.splitlines() if re.match(r"(import|from) ", line)]
    exec("\n".join(imports), {})


def test_the_readme_starts_with_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make demo" in text
    assert "make test" in text
