"""The web demo of compression: a picture at a quality, beside a classic codec at the same number of bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polydit.core.data.images import image_size
from polydit.core.errors import PolyditError
from polydit.core.media import OutputWriter
from polydit.core.media.table import ResultsTable
from polydit.core.metrics.psnr import psnr
from polydit.core.metrics.ssim import ms_ssim
from polydit.core.open_pipeline import choose_weights
from polydit.demos.session import PredictSession, explain_upload
from polydit.demos.widgets import before_after, examples, offer_when_done, upload_picture
from polydit.tasks.compression import TASK
from polydit.tasks.compression.container import Container, read_container
from polydit.tasks.compression.peers import PEERS, peer_within
from polydit.tasks.compression.picture_file import decode_still, read_still, to_pillow

if TYPE_CHECKING:
    import gradio as gr

__all__ = ["Coding", "CompressionSession", "build", "compress", "unpack"]

SAMPLES = Path(__file__).parent / "samples"
MAX_PIXELS = 8_000_000
SMALLEST_FOR_MS_SSIM = 161

HEADER = """
# Compression

Make a photograph small with a learned codec, and see what a classic one makes of the same number of bytes. Everything
runs on this machine; nothing is sent anywhere.
"""
WELCOME = "Choose a picture, or click on an example, and press **Compress**."
OPEN = "A `.pdc` file that these weights coded, such as one that you downloaded here."


@dataclass(frozen=True)
class Coding:
    """What the page shows.

    Attributes:
        file: the ``.pdc`` file.
        decoded: what it decodes to, as PNG.
        peer: what the other codec makes of as many bytes, as PNG.
        note: sizes, a table, the command, in Markdown.
    """

    file: Path
    decoded: Path
    peer: Path
    note: str


class CompressionSession(PredictSession):
    """A session that also decodes files."""

    def decode(self, source: Path, content: Container) -> Path:
        """The PNG of a file that was read.

        Raises:
            PolyditError: it is damaged, or of other weights.
        """
        with self._lock:
            folder = self._new_folder()
            pipe, _ = self._pipeline(self.options("input", folder, {}))
            still = decode_still(pipe.weights, content, source)
        return OutputWriter(folder).image(f"{source.stem}.png", to_pillow(still))


def compress(session: PredictSession, source: Path | None, settings: dict[str, Any], peer: str) -> Coding:
    """Code one picture; what the button does.

    Args:
        session: of the task.
        source: the uploaded file.
        settings: options of ``predict`` by name.
        peer: one of `PEERS`, to compare with.

    Raises:
        PolyditError: as the command complains; or there is no picture, or it is too large for a page.
    """
    if source is None:
        raise PolyditError("picture: there is none yet; upload one or click on an example")
    check_size(source)
    result = session.run(source, settings)
    file, decoded = result.files
    size = file.stat().st_size
    given = np.ascontiguousarray(read_still(source).pixels)
    found = np.ascontiguousarray(read_still(decoded).pixels)
    table = ResultsTable(["codec", "setting", "bytes", "bits per pixel", "PSNR", "MS-SSIM"], digits=3)
    table.add(
        "original file", "", f"{source.stat().st_size:,}", _rate(source.stat().st_size, given), None, None
    )
    table.add(
        "**PolyDiT**",
        f"{result.record['quality']:g}",
        f"{size:,}",
        _rate(size, given),
        *_scores(found, given),
    )
    shown = None
    for name, codec in PEERS.items():
        quality, coded = peer_within(codec, given, size)
        more = " (its smallest)" if coded.size > size else ""
        table.add(
            name,
            f"{quality}",
            f"{coded.size:,}{more}",
            _rate(coded.size, given),
            *_scores(coded.pixels, given),
        )
        if name == peer:
            shown = OutputWriter(result.folder).image(f"{source.stem}_{name.lower()}.png", coded.pixels)
    if shown is None:
        raise PolyditError(f"codec {peer!r}: choose one of {', '.join(PEERS)}")
    height, width = given.shape[:2]
    note = "\n\n".join(
        (
            f"**{width} × {height}** in **{size:,} bytes**; coded in {result.record['encode_seconds']:.2f} s, "
            f"decoded in {result.record['decode_seconds']:.2f} s. Drag the handle to compare, scroll to zoom.",
            table.markdown(),
            "This command makes the same file, byte for byte:",
            f"```sh\n{session.command(source.name, 'results', settings)}\n```",
        )
    )
    return Coding(file, decoded, shown, note)


def unpack(session: CompressionSession, source: Path | None) -> tuple[Path, str]:
    """Decode an uploaded ``.pdc`` file; the PNG, and what the file says.

    Raises:
        PolyditError: there is none, it is damaged, of other weights, or too large for a page.
    """
    if source is None:
        raise PolyditError("file: there is none yet; upload a .pdc file")
    data = source.read_bytes()
    content = read_container(data, source)
    if content.width * content.height > MAX_PIXELS:
        raise PolyditError(
            f"{source}: {content.width} x {content.height} pixels are too many for a page; "
            "use `polydit compression decode`"
        )
    return session.decode(
        source, content
    ), f"**{content.width} × {content.height}** from **{len(data):,} bytes**."


def check_size(source: Path) -> tuple[int, int]:
    """Width and height of a picture.

    Raises:
        PolyditError: it is none, or too large for a page.
    """
    width, height = image_size(source)
    if width * height > MAX_PIXELS:
        raise PolyditError(
            f"{source}: {width} x {height} pixels are too many for a page; use `polydit compression encode`, "
            "or a smaller picture"
        )
    return width, height


def _rate(size: int, pixels: np.ndarray) -> float:
    return 8 * size / pixels[..., 0].size


def _scores(found: np.ndarray, given: np.ndarray) -> tuple[str, str | None]:
    large = min(given.shape[:2]) >= SMALLEST_FOR_MS_SSIM
    return f"{float(psnr(found, given)):.2f} dB", f"{float(ms_ssim(found, given)):.4f}" if large else None


def build(weights: str | Path | None = None) -> gr.Blocks:
    """Build the page; the pipeline is loaded when a button is first pressed, and stays.

    Args:
        weights: folder or hub id of a saved pipeline; the shipped weights when ``None``.
    """
    import gradio as gr

    session = CompressionSession(TASK, weights)
    generative = (Path(choose_weights(TASK, weights)) / "enhancer").is_dir()

    def on_choice(image: str | None) -> str:
        if image is None:
            return ""
        try:
            width, height = check_size(Path(image))
        except PolyditError as error:
            return f"⚠️ **{explain_upload(error, Path(image))}**"
        return f"{width} × {height} pixels, {Path(image).stat().st_size:,} bytes."

    def on_press(
        image: str | None = None,
        quality: float = 3.0,
        target: str = "",
        peer: str = "JPEG",
        fidelity: float = 1.0,
    ) -> tuple[tuple[Path, Path], Path, str]:
        source = Path(image) if image else None
        settings: dict[str, Any] = {"target-size": target.strip()} if target.strip() else {"quality": quality}
        if fidelity != 1:
            settings["fidelity"] = fidelity
        try:
            shown = compress(session, source, settings, peer)
        except Exception as error:
            line = explain_upload(error, source)
            if line is None:
                raise
            raise gr.Error(line, duration=None, print_exception=False) from error
        return (shown.peer, shown.decoded), shown.file, shown.note

    def on_open(file: str | None = None) -> tuple[Path, str]:
        source = Path(file) if file else None
        try:
            return unpack(session, source)
        except Exception as error:
            line = explain_upload(error, source)
            if line is None:
                raise
            raise gr.Error(line, duration=None, print_exception=False) from error

    with gr.Blocks(title="PolyDiT: compression", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        gr.Markdown(HEADER)
        with gr.Tabs():
            with gr.Tab("Compress", render_children=True), gr.Row(equal_height=False):
                with gr.Column(scale=2, min_width=320):
                    image = upload_picture("Picture", "picture", 260)
                    examples(sorted(SAMPLES.glob("*.png")), image)
                    size = gr.Markdown(elem_id="size")
                    quality = gr.Slider(
                        1,
                        9,
                        value=3,
                        step=0.1,
                        label="Quality",
                        info="1 is smallest, 9 is best.",
                        elem_id="quality",
                    )
                    target = gr.Textbox(
                        "",
                        label="Or a size",
                        placeholder="such as 20kB",
                        info="The best quality within it, instead.",
                        elem_id="target",
                        max_lines=1,
                    )
                    peer = gr.Radio(
                        list(PEERS), value="JPEG", label="Compare with, at equal bytes", elem_id="peer"
                    )
                    fidelity = gr.Slider(
                        0,
                        1,
                        value=1,
                        step=0.05,
                        label="Fidelity",
                        info="1 shows what the file says; below, texture is made up. The file stays the same.",
                        visible=generative,
                        elem_id="fidelity",
                    )
                    button = gr.Button("Compress", variant="primary", size="lg", elem_id="compress")
                with gr.Column(scale=5, min_width=420):
                    slider = before_after("The classic codec (left) and PolyDiT (right)")
                    note = gr.Markdown(WELCOME, elem_id="note")
                    download = gr.DownloadButton("Download .pdc", interactive=False, elem_id="download")
            with gr.Tab("Open a file", render_children=True), gr.Row(equal_height=False):
                with gr.Column(scale=2, min_width=320):
                    gr.Markdown(OPEN)
                    file = gr.File(label="File (.pdc)", file_types=[".pdc"], type="filepath", elem_id="file")
                    opener = gr.Button("Decode", variant="primary", elem_id="decode")
                with gr.Column(scale=5, min_width=420):
                    decoded = gr.Image(
                        label="Picture", type="filepath", format="png", interactive=False, elem_id="decoded"
                    )
                    said = gr.Markdown(elem_id="said")
        image.change(on_choice, [image], size, api_visibility="private", show_progress="hidden")
        made = button.click(
            on_press,
            [image, quality, target, peer, fidelity],
            [slider, download, note],
            api_name="compress",
            show_progress_on=slider,
        )
        offer_when_done(made, download)
        opener.click(on_open, [file], [decoded, said], api_name="decode", show_progress_on=decoded)
    return page
