"""Parts that the pages have in common."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import gradio as gr

__all__ = ["before_after", "cache_choice", "cache_setting", "examples", "offer_when_done", "upload_picture"]

PAGE_CACHES = ("taylorseer", "fora", "delta-dit", "block-span", "first-block")
"""Those that suit any transformer; the others are for UNets, for long attention, or for certain families."""


def upload_picture(
    label: str, elem_id: str, height: int, sources: Sequence[str] = ("upload", "clipboard")
) -> gr.Image:
    """A picture whose value is the path of the file as it was uploaded."""
    import gradio as gr

    image = gr.Image(
        label=label,
        type="filepath",
        format="png",
        image_mode=None,
        sources=list(sources),
        height=height,
        elem_id=elem_id,
    )
    # Gradio would open the file first and tell of bad ones in its own words.
    image.preprocess = lambda payload: payload.path if payload is not None else None
    return image


def examples(files: Sequence[Path], image: gr.Image) -> None:
    """Pictures to click on, for an upload."""
    import gradio as gr

    gr.Examples(
        [[str(file)] for file in files],
        inputs=[image],
        label="Examples",
        elem_id="examples",
        api_visibility="private",
    )


def before_after(label: str, elem_id: str = "comparison", height: int = 560) -> gr.ImageSlider:
    """Two pictures of equal size under a slider, each PNG as it was written."""
    import gradio as gr

    return gr.ImageSlider(
        label=label,
        type="filepath",
        format="png",
        buttons=["fullscreen"],
        interactive=False,
        height=height,
        max_height=height,
        elem_id=elem_id,
    )


def cache_choice(elem_id: str = "cache") -> gr.Dropdown:
    """A choice of what steps reuse of one another, for pages whose networks are asked in several."""
    import gradio as gr

    return gr.Dropdown(
        ["none", *PAGE_CACHES],
        value="none",
        min_width=120,
        label="Cache",
        info="Parts of later steps are taken from earlier ones. Needs several steps.",
        elem_id=elem_id,
    )


def cache_setting(cache: str | None) -> dict[str, str | None]:
    """The option of ``predict`` for what was chosen."""
    return {"cache": None if cache == "none" else cache}


def offer_when_done(made: Any, *downloads: gr.DownloadButton) -> None:
    """Enable buttons when an event has succeeded; the first becomes the page's main one."""
    import gradio as gr

    def offer() -> Any:
        buttons = [
            gr.DownloadButton(interactive=True, **({"variant": "primary"} if number == 0 else {}))
            for number in range(len(downloads))
        ]
        return buttons if len(buttons) > 1 else buttons[0]  # gradio takes a list of one for a value

    made.success(
        offer,
        outputs=list(downloads),
        api_visibility="private",
        show_progress="hidden",
    )
