"""The web demo of segmentation: cut an object out and put it on another background."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageFilter, ImageOps

from polydit.core.data.images import image_size, read_image, to_uint8
from polydit.core.errors import PolyditError
from polydit.core.media import OutputWriter
from polydit.core.media.alpha import on_checkerboard
from polydit.demos.segmentation_few_shot import few_shot_session, few_shot_tab
from polydit.demos.session import PredictSession, explain_upload
from polydit.demos.widgets import before_after, examples, offer_when_done, upload_picture
from polydit.tasks.segmentation import TASK
from polydit.tasks.segmentation.cutout import on_background
from polydit.tasks.segmentation.predict import THRESHOLD

if TYPE_CHECKING:
    import gradio as gr

__all__ = ["BACKGROUNDS", "CutOut", "build", "compose", "cut", "cut_out_tab"]

SAMPLES = Path(__file__).parent / "samples"
MAX_PIXELS = 25_000_000  # a browser holds two such pictures as 200 MB
BACKGROUNDS = ("transparent", "colour", "picture", "blur", "mask", "edges")

HEADER = """
# Cut out

Separate the object of a picture from its background with a small diffusion transformer, in one step. Everything runs on
this machine; nothing is sent anywhere.
"""
WELCOME = "Choose a picture, or click on an example, and press **Cut out**."
CLICKS = (
    "Optional: click on the object to keep only that piece; click twice for the corners of a box around it."
)

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class CutOut:
    """What the page shows.

    Attributes:
        before: the picture, as PNG.
        after: what was asked for: the object on another background, or its mask.
        cutout: the PNG with alpha that ``predict`` wrote.
        mask: its soft mask.
        note: size, share of the picture, time, the command, in Markdown.
    """

    before: Path
    after: Path
    cutout: Path
    mask: Path
    note: str


def cut(
    session: PredictSession,
    source: Path | None,
    settings: dict[str, Any],
    background: str = "transparent",
    colour: str = "#ffffff",
    behind: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CutOut:
    """Cut out one picture; what the button does.

    Args:
        session: of the task.
        source: the uploaded file.
        settings: options of ``predict`` by name.
        background: one of `BACKGROUNDS`.
        colour: of the background ``colour``, such as ``#ffcc00``.
        behind: file of the background ``picture``.
        progress: called with (parts done, parts in all).

    Raises:
        PolyditError: as the command complains; or there is no picture, or it is too large for a page.
    """
    if source is None:
        raise PolyditError("picture: there is none yet; upload one or click on an example")
    if background == "picture" and behind is None:
        raise PolyditError("background: there is no picture yet; upload one or choose another kind")
    check_size(source)
    edges = background == "edges"
    result = session.run(source, {**settings, "edges": edges or None}, progress)
    files = {file.stem.rpartition("_")[2]: file for file in result.files}
    picture = to_uint8(read_image(source)[0])
    if background in ("mask", "edges"):
        shown = np.repeat(
            np.asarray(Image.open(files["alpha" if background == "mask" else "edges"]))[..., None], 3, 2
        )
    else:
        shown = compose(np.asarray(Image.open(files["cutout"])), picture, background, colour, behind)
    writer = OutputWriter(result.folder)
    before = writer.image(f"{source.stem}_before.png", picture)
    after = writer.image(f"{source.stem}_on_{background}.png", shown)
    return CutOut(
        before, after, files["cutout"], files["alpha"], _describe(session, source, settings, result)
    )


def compose(
    cutout: Pixels, picture: Pixels, background: str, colour: str = "#ffffff", behind: Path | None = None
) -> Pixels:
    """A cut-out (H, W, 4) on a background of its size, (H, W, 3).

    Raises:
        PolyditError: the colour is none, or the picture cannot be read.
    """
    height, width = cutout.shape[:2]
    if background == "transparent":
        return on_checkerboard(cutout)
    if background == "blur":
        return on_background(cutout, blurred_background(picture, cutout[..., 3]))
    if background == "picture" and behind is not None:
        other = Image.fromarray(to_uint8(read_image(behind)[0]))
        return on_background(
            cutout, np.asarray(ImageOps.fit(other, (width, height), Image.Resampling.BICUBIC))
        )
    return on_background(cutout, np.array(parse_colour(colour), np.uint8))


def blurred_background(picture: Pixels, alpha: Pixels) -> Pixels:
    """What is behind the object, out of focus; its place is filled first, or it would glow through."""
    import torch

    from polydit.core.alpha import pad_rgb

    radius = max(2, max(alpha.shape) // 60)
    near = np.asarray(Image.fromarray(alpha).filter(ImageFilter.MaxFilter(2 * min(radius, 15) + 1)))
    behind = torch.from_numpy((near < 13).astype(np.float32))[None, None]
    pixels = torch.from_numpy(picture.transpose(2, 0, 1).copy())[None].float() / 255
    filled = pad_rgb(pixels, behind, factor=2.0)[0].permute(1, 2, 0).numpy()
    image = Image.fromarray(np.rint(filled * 255).clip(0, 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)))


def parse_colour(text: str) -> tuple[int, int, int]:
    """``#rrggbb``, a name, or the ``rgba(...)`` of a browser's colour field.

    Raises:
        PolyditError: it is none of these.
    """
    try:
        if text.startswith("rgb"):
            numbers = [float(part) for part in text[text.index("(") + 1 : text.index(")")].split(",")[:3]]
            red, green, blue = (min(255, max(0, round(number))) for number in numbers)
            return red, green, blue
        return ImageColor.getrgb(text)[:3]
    except ValueError as error:
        raise PolyditError(f"colour {text!r}: give one such as #ffcc00") from error


def check_size(source: Path) -> tuple[int, int]:
    """Width and height of a picture.

    Raises:
        PolyditError: it is not a picture, or too large for a page.
    """
    width, height = image_size(source)
    if width * height > MAX_PIXELS:
        raise PolyditError(
            f"{source}: {width} x {height} pixels are too many for a page; use `polydit {TASK.name} predict`, "
            "or a smaller picture"
        )
    return width, height


def clicked(points: list[tuple[int, int]]) -> dict[str, str]:
    """Settings of ``predict`` for what was clicked: a piece for one click, a box for two."""
    if not points:
        return {}
    if len(points) == 1:
        return {"point": ",".join(map(str, points[0]))}
    (x0, y0), (x1, y1) = points[-2:]
    return {"box": f"{min(x0, x1)},{min(y0, y1)},{max(x0, x1)},{max(y0, y1)}"}


def _describe(session: PredictSession, source: Path, settings: dict[str, Any], result: Any) -> str:
    width, height = result.record["size"]
    return "\n\n".join(
        (
            f"**{width} × {height}** in {result.seconds:.1f} s · the object covers "
            f"{100 * result.record['foreground']:.0f} % of the picture. Drag the handle to compare.",
            "This command makes the same cut-out, byte for byte:",
            f"```sh\n{session.command(source.name, 'results', settings)}\n```",
        )
    )


def small_samples(folder: Path) -> list[Path]:
    """The sample pictures, reduced so that cutting one out takes little time."""
    writer = OutputWriter(folder)
    reduced = []
    for file in sorted(SAMPLES.glob("*.png")):
        picture = Image.open(file).convert("RGB")
        picture.thumbnail((768, 768), Image.Resampling.BICUBIC)
        reduced.append(writer.image(file.name, picture))
    return reduced


def cut_out_tab(session: PredictSession) -> None:
    """Build the page's part inside the ``gr.Blocks`` (or tab) that is open.

    Args:
        session: of the task.
    """
    import gradio as gr

    def on_choice(image: str | None) -> tuple[list[Any], str]:
        if image is None:
            return [], ""
        source = Path(image)
        try:
            width, height = check_size(source)
        except PolyditError as error:
            return [], f"⚠️ **{explain_upload(error, source)}**"
        return [], f"{width} × {height} pixels. {CLICKS}"

    def on_click(points: list[Any], event: gr.SelectData) -> tuple[list[Any], str]:
        x, y = (int(value) for value in event.index)
        points = [*points, (x, y)] if len(points) < 2 else [(x, y)]
        chosen = clicked([tuple(point) for point in points])
        return points, " · ".join(f"{name}: {value}" for name, value in chosen.items())

    # Gradio looks at the annotation to pass the event, and cannot resolve a name that was imported in here.
    on_click.__annotations__["event"] = gr.SelectData

    def on_press(
        image: str | None = None,
        background: str = "transparent",
        colour: str = "#ffffff",
        behind: str | None = None,
        detail: str = "tiles",
        threshold: float = THRESHOLD,
        point: str = "",
        box: str = "",
        points: Any = None,
        progress: Any = gr.Progress(),  # noqa: B008 - gradio finds the bar by its default value
    ) -> tuple[tuple[Path, Path], Path, Path, str]:
        source, other = (Path(file) if file else None for file in (image, behind))
        given = {"point": point or None, "box": box or None}
        if not any(given.values()):
            given |= clicked([tuple(point) for point in points or []])
        settings = {
            "detail": detail if detail != "tiles" else None,
            "threshold": threshold if threshold != THRESHOLD else None,
            **given,
        }
        try:
            progress(0, desc="preparing")
            shown = cut(
                session,
                source,
                settings,
                background,
                colour,
                other,
                lambda done, total: progress((done, total), unit="looks"),
            )
        except Exception as error:
            line = explain_upload(error, source, other)
            if line is None:
                raise
            raise gr.Error(line, duration=None, print_exception=False) from error
        return (shown.before, shown.after), shown.cutout, shown.mask, shown.note

    points = gr.State([])
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=320):
            image = upload_picture("Picture", "picture", 260)
            examples(session.keep(small_samples), image)
            size = gr.Markdown(elem_id="size")
            chosen = gr.Markdown(elem_id="chosen")
            # Children that are rendered late lose what is entered in their first moments.
            with gr.Tabs():
                with gr.Tab("Background", render_children=True):
                    background = gr.Radio(
                        list(BACKGROUNDS), value="transparent", label="Show on", elem_id="background"
                    )
                    colour = gr.ColorPicker("#ffffff", label="Colour", elem_id="colour")
                    behind = upload_picture("Background picture", "behind", 140, sources=["upload"])
                with gr.Tab("Settings", render_children=True):
                    detail = gr.Radio(
                        ["tiles", "guided", "none"],
                        value="tiles",
                        label="Detail of large pictures",
                        info="Tiles are told what the look at the whole has found.",
                        elem_id="detail",
                    )
                    threshold = gr.Slider(
                        0.05,
                        0.95,
                        value=THRESHOLD,
                        step=0.05,
                        label="Threshold of the hard mask",
                    )
                    with gr.Row():
                        point = gr.Textbox(
                            "", label="Point", placeholder="x,y", min_width=120, elem_id="point"
                        )
                        box = gr.Textbox(
                            "", label="Box", placeholder="x0,y0,x1,y1", min_width=120, elem_id="box"
                        )
            button = gr.Button("Cut out", variant="primary", size="lg", elem_id="cut")
        with gr.Column(scale=5, min_width=420):
            slider = before_after("Picture (left) and object (right)")
            note = gr.Markdown(WELCOME, elem_id="note")
            with gr.Row():
                download = gr.DownloadButton("Download cut-out", interactive=False, elem_id="download")
                download_mask = gr.DownloadButton("Download mask", interactive=False, elem_id="download-mask")
    image.change(on_choice, image, [points, size], api_visibility="private", show_progress="hidden").then(
        lambda: "", outputs=chosen, api_visibility="private", show_progress="hidden"
    )
    image.select(on_click, points, [points, chosen], api_visibility="private", show_progress="hidden")
    made = button.click(
        on_press,
        [image, background, colour, behind, detail, threshold, point, box, points],
        [slider, download, download_mask, note],
        api_name="cut_out",
        show_progress_on=slider,
    )
    offer_when_done(made, download, download_mask)


def build(weights: str | Path | None = None) -> gr.Blocks:
    """Build the page; a pipeline is loaded when its button is first pressed, and stays.

    Args:
        weights: folder or hub id of a saved pipeline for cutting out; the shipped weights when ``None``.
    """
    import gradio as gr

    with gr.Blocks(title="PolyDiT: cut out", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        gr.Markdown(HEADER)
        with gr.Tabs():
            with gr.Tab("Cut out", render_children=True):
                cut_out_tab(PredictSession(TASK, weights))
            with gr.Tab("Show me one", render_children=True):
                few_shot_tab(few_shot_session())
    return page
