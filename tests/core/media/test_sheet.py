"""Sheets: the pictures are where they should be, unaltered where they are shown at their own size."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from polydit.core.media import ZoomBox, comparison_sheet, contact_sheet, detail_boxes


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def find(sheet: np.ndarray, picture: np.ndarray) -> list[tuple[int, int]]:
    """Positions (top, left) at which ``picture`` stands in the sheet exactly."""
    height, width = picture.shape[:2]
    first = (sheet[: len(sheet) - height + 1, : sheet.shape[1] - width + 1] == picture[0, 0]).all(-1)
    places = zip(*np.nonzero(first), strict=True)
    return [(t, left) for t, left in places if (sheet[t : t + height, left : left + width] == picture).all()]


def test_panels_stand_side_by_side_untouched_at_their_own_width():
    pictures = [noise(30, 50, 3), 255 - noise(30, 50, 3)]
    sheet = np.asarray(comparison_sheet([("a", pictures[0]), ("b", pictures[1])], panel_width=50))
    (first,), (second,) = find(sheet, pictures[0]), find(sheet, pictures[1])
    assert first[0] == second[0]
    assert second[1] - first[1] == 50 + 12


def test_zoom_insets_show_the_same_detail_of_every_panel_enlarged_by_repetition():
    pictures = [noise(40, 60, 3), 255 - noise(40, 60, 3)]
    box = (10, 4, 20, 10)  # left, top, width, height: enlarged three times
    sheet = np.asarray(comparison_sheet([("a", pictures[0]), ("b", pictures[1])], [box], panel_width=60))
    for picture in pictures:
        inset = picture[4:14, 10:30].repeat(3, axis=0).repeat(3, axis=1)
        assert len(find(sheet, inset[3:-3, 3:-3])) == 1  # less its frame


def test_box_frame_is_drawn_on_the_full_view_in_the_colour_of_the_inset():
    black = np.zeros((40, 60, 3), np.uint8)
    boxes = [ZoomBox(10, 4, 20, 10), (40, 20, 15, 15)]
    plain = np.asarray(comparison_sheet([("a", black)], panel_width=60))
    top, left = find(plain, black)[0]
    sheet = np.asarray(comparison_sheet([("a", black)], boxes, panel_width=60))
    view = sheet[top : top + 40, left : left + 60]
    corners = view[4, 10], view[13, 29], view[20, 40], view[34, 54]
    assert (corners[0] == corners[1]).all()
    assert (corners[2] == corners[3]).all()
    assert (corners[0] != corners[2]).any()
    for colour in (corners[0], corners[2]):
        assert colour.any()
        assert (sheet[top + 40 :] == colour).all(-1).any(), "the inset has a frame of this colour"
    assert not view[8:10, 14:26].any(), "the inside of the box is untouched"


def test_smaller_panels_are_enlarged_by_repetition_and_boxes_follow():
    small, large = noise(10, 16, 3), noise(40, 64, 3)
    sheet = np.asarray(comparison_sheet([("lr", small), ("hr", large)], [(16, 8, 32, 16)], panel_width=64))
    enlarged = small.repeat(4, axis=0).repeat(4, axis=1)
    assert len(find(sheet, enlarged[:7])) == 1  # above the frame
    inset = small[2:6, 4:12].repeat(8, axis=0).repeat(8, axis=1)
    assert len(find(sheet, inset[3:-3, 3:-3])) == 1


def test_labels_and_title_are_drawn():
    picture = np.full((30, 80, 3), 250, np.uint8)
    empty = comparison_sheet([("", picture)], panel_width=80)
    labelled = comparison_sheet([("bicubic\n27.1 dB", picture)], panel_width=80, title="x4")
    assert np.asarray(empty).min() == 250
    assert np.asarray(labelled).min() < 100
    assert labelled.height > empty.height + 30


def test_grey_and_transparent_pictures_and_large_ones_are_shown():
    panels = [
        ("grey", noise(50, 40)),
        ("one channel", noise(50, 40, 1)),
        ("rgba", noise(50, 40, 4)),
        ("pillow", Image.new("P", (40, 50))),
    ]
    sheet = comparison_sheet(panels, panel_width=20)
    assert sheet.mode == "RGB"
    assert sheet.width == 12 + 4 * 32


def test_boxes_outside_are_refused_and_partly_outside_are_cut():
    picture = noise(20, 20, 3)
    with pytest.raises(ValueError, match="outside the picture"):
        comparison_sheet([("a", picture)], [(20, 0, 5, 5)])
    comparison_sheet([("a", picture)], [(15, 15, 20, 20)])
    comparison_sheet([("a", noise(400, 400, 3))], [(100, 100, 3, 3)], panel_width=20)
    with pytest.raises(ValueError, match="no panels"):
        comparison_sheet([])


def test_contact_sheet_places_pictures_row_by_row():
    pictures = [np.full((20, 20, 3), i * 20, np.uint8) for i in range(1, 6)]
    labelled = [(str(i), picture) for i, picture in enumerate(pictures)]
    sheet = np.asarray(contact_sheet(labelled, columns=3, cell=20, title="t"))
    places = [find(sheet, picture)[0] for picture in pictures]
    assert places == sorted(places)
    assert len({top for top, _ in places}) == 2
    assert len({left for _, left in places}) == 3
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([])


def test_detail_boxes_find_the_texture_and_do_not_overlap():
    picture = np.full((200, 300, 3), 128, np.uint8)
    picture[20:60, 200:240] = noise(40, 40, 3)
    picture[120:160, 40:80] = noise(40, 40, 3) // 2
    first, second = detail_boxes(picture, count=2, size=40)
    assert abs(first.left - 200) <= 2
    assert abs(first.top - 20) <= 2
    assert abs(second.left - 40) <= 2
    assert abs(second.top - 120) <= 2
    assert detail_boxes(np.zeros((50, 50), np.uint8)) == []
    assert detail_boxes(noise(1, 1, 3)) == []
