"""A page with before/after sliders that needs nothing but a browser: no server, no network."""

from __future__ import annotations

import base64
import html
import mimetypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from ..errors import PolyditError
from .table import ResultsTable

__all__ = ["BeforeAfter", "before_after_html", "before_after_page"]


@dataclass(frozen=True)
class BeforeAfter:
    """One slider.

    Attributes:
        before: picture on the left, a file name relative to the page (or, to embed it, any path).
        after: picture on the right; the frame takes its shape, and ``before`` is stretched to it.
        caption: text below.
        labels: what the two sides are called.
    """

    before: str | Path
    after: str | Path
    caption: str = ""
    labels: tuple[str, str] = ("Before", "After")


def before_after_html(
    before_png: str | Path,
    after_png: str | Path,
    title: str,
    *,
    caption: str = "",
    labels: tuple[str, str] = ("Before", "After"),
    embed: bool = False,
) -> str:
    """Return a page with one slider (see `before_after_page`)."""
    return before_after_page([BeforeAfter(before_png, after_png, caption, labels)], title, embed=embed)


def before_after_page(
    pairs: Sequence[BeforeAfter],
    title: str,
    *,
    introduction: str = "",
    tables: Sequence[ResultsTable] = (),
    embed: bool = False,
) -> str:
    """Return a self-contained page with one slider per pair.

    The slider works with the mouse, by touch and with the arrow keys, and tells a screen reader what it
    shows; without JavaScript both pictures are shown one below the other.

    Args:
        pairs: the pictures.
        title: heading and window title.
        introduction: plain text under the heading.
        tables: results, shown below the sliders.
        embed: put the pictures into the page (one file to send; a third larger than the pictures) instead of
            referring to them by relative name.

    Returns:
        HTML text, to be written as UTF-8.

    Raises:
        PolyditError: a picture to embed cannot be read.
        ValueError: a name to refer to is absolute; it would not survive moving the folder.
    """
    parts = [_figure(pair, embed) for pair in pairs]
    parts += [f'<div class="table">{table.html()}</div>' for table in tables]
    return _PAGE.format(
        title=html.escape(title),
        introduction=f"<p>{html.escape(introduction)}</p>" if introduction else "",
        body="\n".join(parts),
        style=_STYLE,
        script=_SCRIPT,
    )


def _figure(pair: BeforeAfter, embed: bool) -> str:
    left, right = (html.escape(label) for label in pair.labels)
    caption = html.escape(pair.caption)
    about = f"{caption}: " if caption else ""
    return _FIGURE.format(
        before=html.escape(_source(pair.before, embed)),
        after=html.escape(_source(pair.after, embed)),
        left=left,
        right=right,
        about=about,
        caption=caption,
    )


def _source(picture: str | Path, embed: bool) -> str:
    if embed:
        try:
            content = Path(picture).read_bytes()
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise PolyditError(f"{picture}: cannot read this picture ({reason})") from error
        kind = mimetypes.guess_type(str(picture))[0] or "image/png"
        return f"data:{kind};base64,{base64.b64encode(content).decode()}"
    name = Path(picture).as_posix()
    if PurePosixPath(name).is_absolute() or Path(picture).is_absolute() or "://" in str(picture):
        raise ValueError(f"before/after page: {picture} must be named relative to the page")
    return quote(name)


_FIGURE = """<figure class="pair">
<div class="view"><div class="frame">
<img class="before" src="{before}" alt="{about}{left}">
<img class="after" src="{after}" alt="{about}{right}">
<input type="range" min="0" max="100" step="0.5" value="50"
 aria-label="{about}divide between {left} and {right}" data-left="{left}" data-right="{right}">
<span class="line" aria-hidden="true"></span>
<span class="tag left" aria-hidden="true">{left}</span>
<span class="tag right" aria-hidden="true">{right}</span>
</div></div>
<figcaption><span>{caption}</span>
<button type="button" aria-pressed="false">Actual pixels</button></figcaption>
</figure>"""

# Until the script has run the pictures stand one below the other; `ready` lays them on one another.
_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { margin: 0 auto; max-width: 1100px; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.5rem; margin: 0 0 .5rem; }
figure { margin: 1.5rem 0 2rem; }
figcaption { display: flex; gap: 1rem; justify-content: space-between; align-items: start;
  padding-top: .4rem; }
.view { max-width: 100%; overflow: auto; }
.frame { position: relative; --cut: 50%; }
.frame img { display: block; width: 100%; }
.line, .tag, .frame input, .pair button { display: none; }
.ready .line, .ready .tag, .ready .frame input, .ready button { display: block; }
.ready .before { position: absolute; inset: 0; height: 100%; }
.ready .after { position: relative; clip-path: inset(0 0 0 var(--cut)); }
.ready .frame input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0;
  cursor: ew-resize; z-index: 2; }
.line { position: absolute; top: 0; bottom: 0; left: var(--cut); width: 2px; margin-left: -1px;
  background: #fff; box-shadow: 0 0 4px #000; pointer-events: none; }
.line::after { content: ""; position: absolute; top: 50%; left: 50%; width: 28px; height: 28px;
  transform: translate(-50%, -50%); border-radius: 50%; border: 2px solid #fff; background: #0008; }
.frame input:focus-visible + .line { width: 4px; margin-left: -2px; background: #ffb000; }
.tag { position: absolute; top: .5rem; padding: .1rem .5rem; border-radius: .3rem; color: #fff;
  background: #000a; pointer-events: none; }
.tag.left { left: .5rem; } .tag.right { right: .5rem; }
.actual .frame { width: max-content; } .actual .after { width: auto; max-width: none; }
.actual img { image-rendering: pixelated; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.table { overflow: auto; margin-top: 1.5rem; }
caption { text-align: left; font-weight: 600; padding-bottom: .4rem; }
th, td { padding: .25rem .75rem; border-bottom: 1px solid #8886; text-align: left; }
.number { text-align: right; }
"""

_SCRIPT = """
for (const pair of document.querySelectorAll(".pair")) {
  const frame = pair.querySelector(".frame"), range = pair.querySelector("input");
  const button = pair.querySelector("button");
  const move = () => {
    frame.style.setProperty("--cut", range.value + "%");
    range.setAttribute("aria-valuetext", Math.round(range.value) + " % " + range.dataset.left + ", "
      + Math.round(100 - range.value) + " % " + range.dataset.right);
  };
  range.addEventListener("input", move);
  button.addEventListener("click", () => {
    const actual = pair.classList.toggle("actual");
    button.setAttribute("aria-pressed", actual);
  });
  pair.classList.add("ready");
  move();
}
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{introduction}
{body}
</main>
<script>{script}</script>
</body>
</html>
"""
