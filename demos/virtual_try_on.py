"""The web demo of virtual try-on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polydit.core.data.images import image_size, read_image, to_uint8
from polydit.core.errors import PolyditError
from polydit.core.media import OutputWriter
from polydit.core.open_pipeline import choose_weights
from polydit.demos.painting import BRUSH, painted
from polydit.demos.session import PredictSession, explain_upload
from polydit.demos.widgets import (
    before_after,
    cache_choice,
    cache_setting,
    offer_when_done,
    upload_picture,
)
from polydit.tasks.virtual_try_on import TASK
from polydit.tasks.virtual_try_on.masks import read_mask

if TYPE_CHECKING:
    import gradio as gr

__all__ = ["Dressed", "build", "dress"]

SAMPLES = Path(__file__).parent / "samples" / "virtual_try_on"
MAX_PIXELS = 20_000_000  # an editor holds several copies in the browser

HEADER = """
# Virtual try-on

Paint over what a person shall wear something else on, choose a garment, and see them in it. Everything runs on this
machine; nothing is sent anywhere.
"""
WELCOME = """
Click on a person, who comes with a mask, and on a garment, and press **Dress**. On a photograph of your
own, paint over the clothes **and the whole arms**: what is left of an old sleeve tells its length.
"""


@dataclass(frozen=True)
class Dressed:
    """What the page shows.

    Attributes:
        before: the person, as PNG.
        after: what `predict` wrote, of the same size.
        note: sizes, time, the command, in Markdown.
    """

    before: Path
    after: Path
    note: str


def dress(
    session: PredictSession,
    person: Path | None,
    layers: Sequence[Path],
    mask: Path | None,
    garment: Path | None,
    settings: dict[str, Any],
) -> Dressed:
    """Dress one person; what the button does.

    Args:
        session: of the task.
        person: the photograph.
        layers: what was painted on it.
        mask: a picture of a mask, to which what was painted is added.
        garment: the garment's picture.
        settings: options of ``predict`` by name.

    Raises:
        PolyditError: as the command complains; or a picture is missing or too large for a page.
    """
    if person is None:
        raise PolyditError("person: there is none yet; upload a photograph or click on a person")
    if garment is None:
        raise PolyditError("garment: there is none yet; upload a picture or click on a garment")
    size = image_size(person)
    if size[0] * size[1] > MAX_PIXELS:
        raise PolyditError(
            f"{person}: {size[0]} x {size[1]} pixels are too many for a page; "
            f"use `polydit {session.task.name} predict`, or a smaller picture"
        )
    whole = painted(layers, size) > 0
    if whole.any():
        if mask is not None:
            whole |= read_mask(mask, (size[1], size[0]))
        # Beside the layer: gradio removes both in its time.
        mask = OutputWriter(layers[0].parent, overwrite=True).image(
            "mask.png", (whole * 255).astype(np.uint8)
        )
    elif mask is None:
        raise PolyditError("mask: nothing is painted yet; paint over the clothes and the whole arms")
    options = {"garment": garment, "mask": mask, **settings}
    result = session.run(person, options)
    before = OutputWriter(result.folder).image("before.png", to_uint8(read_image(person)[0]))
    return Dressed(before, result.files[0], _describe(session, person, options, result))


def _describe(session: PredictSession, person: Path, options: dict[str, Any], result: Any) -> str:
    width, height = result.record["size"]
    seen = result.record["view"]
    named = {name: value.name if isinstance(value, Path) else value for name, value in options.items()}
    inner = result.record["network_size"]
    return "\n\n".join(
        (
            f"**{width} × {height}** in {result.seconds:.1f} s. The network saw {seen['width']} × {seen['height']} of "
            f"these pixels at its own {inner[0]} × {inner[1]}. Drag the handle to compare.",
            "This command makes the same file, byte for byte:",
            f"```sh\n{session.command(person.name, 'results', named)}\n```",
        )
    )


def steps_of(weights: str | Path | None) -> int:
    """Denoising steps that weights are made for, as their folder says."""
    try:
        folder = Path(choose_weights(TASK, weights))
        return int(json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["steps"])
    except (PolyditError, OSError, ValueError, KeyError, TypeError):
        return 8  # a hub id, or weights that are still to be had; the button will tell


def build(weights: str | Path | None = None) -> gr.Blocks:
    """Build the page; the pipeline is loaded when the button is first pressed, and stays.

    Args:
        weights: folder or hub id of a saved pipeline; the shipped weights when ``None``.
    """
    import gradio as gr

    session = PredictSession(TASK, weights)
    defaults = session.options("input", "output", {})
    made_for = steps_of(weights)
    people = sorted((SAMPLES / "people").glob("*.png"))
    garments = sorted((SAMPLES / "garments").glob("*.png"))

    def on_press(
        person: dict[str, Any] | None = None,
        mask: str | None = None,
        garment: str | None = None,
        steps: int = made_for,
        seed: int | None = defaults.seed,
        hull: bool = False,
        cache: str = defaults.cache,
        progress: Any = gr.Progress(),  # noqa: B008 - gradio finds the bar by its default value
    ) -> tuple[tuple[Path, Path], Path, str]:
        editor = person or {}
        given = (editor.get("background"), mask, garment)
        source, region, worn = (Path(file) if file else None for file in given)
        layers = [Path(file) for file in editor.get("layers") or ()]
        settings = {"steps": steps, "seed": seed, "hull": hull or None, **cache_setting(cache)}
        try:
            progress(0, desc="dressing")
            shown = dress(session, source, layers, region, worn, settings)
        except Exception as error:
            line = explain_upload(error, source, region, worn)
            if line is None:
                raise
            raise gr.Error(line, duration=None, print_exception=False) from error
        return (shown.before, shown.after), shown.after, shown.note

    def on_person(event: gr.SelectData) -> tuple[dict[str, Any], str]:
        photo = people[event.index]
        value = {"background": str(photo), "layers": [], "composite": None}
        return value, str(SAMPLES / "masks" / photo.name)

    def on_garment(event: gr.SelectData) -> str:
        return str(garments[event.index])

    # Gradio looks at the classes themselves, and cannot look up a name that is imported in here.
    on_person.__annotations__["event"] = on_garment.__annotations__["event"] = gr.SelectData

    with gr.Blocks(
        title="PolyDiT: virtual try-on", analytics_enabled=False, delete_cache=(3600, 86400)
    ) as page:
        gr.Markdown(HEADER)
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=400):
                editor = gr.ImageEditor(
                    label="Person: paint over what to dress anew",
                    type="filepath",
                    format="png",
                    sources=["upload", "clipboard"],
                    transforms=(),
                    layers=False,
                    brush=gr.Brush(colors=[BRUSH], default_size=24, color_mode="fixed"),
                    height=460,
                    elem_id="person",
                )
                crowd = gr.Gallery(
                    [str(file) for file in people],
                    format="png",
                    label="People",
                    show_label=False,
                    columns=4,
                    height=130,
                    object_fit="contain",
                    allow_preview=False,
                    buttons=[],
                    interactive=False,
                    elem_id="people",
                )
                mask = upload_picture("Mask, instead of painting or besides", "mask", 170)
            with gr.Column(scale=3, min_width=340):
                garment = upload_picture("Garment", "garment", 220)
                wardrobe = gr.Gallery(
                    [str(file) for file in garments],
                    format="png",
                    label="Garments",
                    show_label=False,
                    columns=3,
                    height=230,
                    object_fit="contain",
                    allow_preview=False,
                    buttons=[],
                    interactive=False,
                    elem_id="garments",
                )
                steps = gr.Slider(
                    1, max(32, made_for), value=made_for, step=1, label="Steps", info="More take longer."
                )
                with gr.Row():
                    seed = gr.Number(
                        defaults.seed,
                        precision=0,
                        minimum=0,
                        maximum=2**32 - 1,
                        min_width=120,
                        label="Seed",
                        info="The same seed, the same picture.",
                        elem_id="seed",
                    )
                    hull = gr.Checkbox(
                        False, label="Grow the mask", info="To its hull and a margin.", elem_id="hull"
                    )
                cache = cache_choice()
                button = gr.Button("Dress", variant="primary", size="lg", elem_id="dress")
            with gr.Column(scale=4, min_width=360):
                slider = before_after("Before (left) and after (right)")
                note = gr.Markdown(WELCOME, elem_id="note")
                download = gr.DownloadButton("Download PNG", interactive=False, elem_id="download")
        crowd.select(on_person, outputs=[editor, mask], api_visibility="private", show_progress="hidden")
        wardrobe.select(on_garment, outputs=garment, api_visibility="private", show_progress="hidden")
        made = button.click(
            on_press,
            [editor, mask, garment, steps, seed, hull, cache],
            [slider, download, note],
            api_name="dress",
            show_progress_on=slider,
        )
        offer_when_done(made, download)
    return page
