"""Writing what a command makes: whole files or none, large PNGs in strips, sheets, pages and tables.

Pictures appear under their name only when they are complete; comparison sheets, before/after pages and tables
of figures show what was gained. Imported by ``predict``: needs no more than torch, numpy and Pillow.
"""

from __future__ import annotations

from .alpha import checkerboard, on_checkerboard
from .before_after import BeforeAfter, before_after_html, before_after_page
from .layer_files import LayerStack, PictureLayer, export_layers, read_layers, write_layers
from .pixels import from_uint8, to_uint8
from .png import PngStream
from .sheet import ZoomBox, comparison_sheet, contact_sheet, detail_boxes
from .table import ResultsTable
from .writer import OutputWriter

__all__ = [
    "BeforeAfter",
    "LayerStack",
    "OutputWriter",
    "PictureLayer",
    "PngStream",
    "ResultsTable",
    "ZoomBox",
    "before_after_html",
    "before_after_page",
    "checkerboard",
    "comparison_sheet",
    "contact_sheet",
    "detail_boxes",
    "export_layers",
    "from_uint8",
    "on_checkerboard",
    "read_layers",
    "to_uint8",
    "write_layers",
]
