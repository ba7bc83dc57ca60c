"""The before/after page in a real browser: what moves, what is read out, what is loaded."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polydit.core.media import BeforeAfter, OutputWriter, before_after_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None and not os.environ.get("CI"), reason="chromium is not installed"),
]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory) -> Path:
    writer = OutputWriter(tmp_path_factory.mktemp("page"))
    writer.image("a before.png", np.full((50, 100, 3), (255, 0, 0), np.uint8))  # red, half the size
    writer.image("after.png", np.full((100, 200, 3), (0, 0, 255), np.uint8))  # blue
    pairs = [BeforeAfter("a before.png", "after.png", "Colours", ("Red", "Blue"))]
    return writer.text("page.html", before_after_page(pairs, "Colours"))


def colours(frame) -> np.ndarray:
    """The middle row of what is shown, with the labels and the knob of the divide left out."""
    shot = np.asarray(Image.open(io.BytesIO(frame.screenshot())).convert("RGB"))
    return shot[shot.shape[0] * 3 // 4]


def share_of_red(frame) -> float:
    row = colours(frame)
    return float((row[:, 0] > row[:, 2]).mean())


def test_slider_by_keyboard_and_mouse_offline(chromium, page_file):
    context = chromium.new_context(offline=True, viewport={"width": 900, "height": 700})
    page = context.new_page()
    problems: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(page_file.as_uri())

    frame, slider = (
        page.locator(".frame"),
        page.get_by_role("slider", name="Colours: divide between Red and Blue"),
    )
    assert share_of_red(frame) == pytest.approx(0.5, abs=0.02)
    slider.focus()
    page.keyboard.press("End")
    assert share_of_red(frame) > 0.98
    assert slider.get_attribute("aria-valuetext") == "100 % Red, 0 % Blue"
    page.keyboard.press("Home")
    assert share_of_red(frame) < 0.02

    box = frame.bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.25, box["y"] + box["height"] * 0.6)
    assert share_of_red(frame) == pytest.approx(0.25, abs=0.04)

    button = page.get_by_role("button", name="Actual pixels")
    assert box["width"] > 800
    button.click()
    assert frame.bounding_box()["width"] == 200
    assert button.get_attribute("aria-pressed") == "true"

    assert problems == []
    assert all(url.startswith("file://") for url in requests)
    assert len(requests) == 3
    context.close()


def test_without_javascript_both_pictures_are_there(chromium, page_file):
    context = chromium.new_context(java_script_enabled=False, viewport={"width": 900, "height": 1200})
    page = context.new_page()
    page.goto(page_file.as_uri())
    boxes = [page.get_by_alt_text(f"Colours: {name}").bounding_box() for name in ("Red", "Blue")]
    assert boxes[0]["y"] + boxes[0]["height"] <= boxes[1]["y"] + 1
    assert not page.get_by_role("slider").count()
    assert not page.get_by_role("button").count()
    context.close()
