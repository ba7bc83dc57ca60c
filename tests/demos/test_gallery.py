"""The page over all tasks, and the commands that serve pages."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path

import pytest

from polydit.core.cli import main
from polydit.core.task import BrokenTask, find_tasks
from polydit.demos import gallery

TASKS, _ = find_tasks()


@pytest.fixture
def gradio() -> None:
    pytest.importorskip("gradio", reason="the extra demo is not installed")


@pytest.mark.usefixtures("gradio", "eighth_task")
def test_every_task_with_a_demo_has_a_tab_and_every_task_is_listed():
    page = gallery.build()
    blocks = page.blocks.values()
    tabs = [tab.label for tab in page.children[0].children]
    assert tabs == ["Tasks", *(task.name.capitalize() for task in TASKS.values() if task.demo)]
    text = next(block.value for block in blocks if block.get_block_name() == "markdown")
    for name in (*TASKS, "dummy"):
        assert f"### {name.capitalize()}" in text
    assert "upscale" in {event.api_name for event in page.fns.values()}


@pytest.mark.usefixtures("gradio")
def test_every_picture_is_png():
    from polydit.core.task import resolve

    for task in TASKS.values():
        for block in resolve(task.demo)().blocks.values() if task.demo else ():
            if block.get_block_name() == "video":
                continue
            assert getattr(block, "format", "png") == "png", f"{task.name}: {block.label} would be lossy"


@pytest.mark.usefixtures("gradio")
def test_a_demo_that_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch):
    good = TASKS["super-resolution"]
    bad = dataclasses.replace(good, name="bad", demo="polydit.demos.nowhere:build")
    monkeypatch.setattr(gallery, "find_tasks", lambda: ({"bad": bad, good.name: good}, []))
    page = gallery.build()
    texts = [block.value for block in page.blocks.values() if block.get_block_name() == "markdown"]
    assert any(
        "This demo cannot be shown" in text and "no module polydit.demos.nowhere" in text for text in texts
    )
    assert [event.api_name for event in page.fns.values() if event.api_visibility == "public"] == ["upscale"]


def test_the_overview_names_papers_and_what_is_missing(tmp_path: Path):
    plain = dataclasses.replace(TASKS["super-resolution"], package="nothing", default_weights=None, demo=None)
    text = gallery.overview([plain], [BrokenTask("lost", "somewhere", "ImportError: gone")])
    assert "https://arxiv.org/abs/2503.23580" in text
    assert "No weights came with it" in text
    assert "It has no page" in text
    assert "- lost: cannot be loaded (ImportError: gone)" in text


def test_wrong_weights_are_said_before_the_page_opens(
    dummy_weights: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["super-resolution", "demo", "--port", str(free_port()), "--weights"]
    assert main([*words, "gone"]) == 2
    assert "gone: no such folder" in capsys.readouterr().err
    assert main([*words, str(dummy_weights)]) == 2
    assert "these are weights of dummy, not of super-resolution" in capsys.readouterr().err


def test_a_port_in_use_is_said(capsys: pytest.CaptureFixture[str]):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert gallery.main(["--port", str(port)]) == 2
    assert f"polydit: error: --port {port}: in use" in capsys.readouterr().err


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
