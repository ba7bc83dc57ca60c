"""What a copy keeps of a garment's picture that is larger than the network's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from polydit.tasks.virtual_try_on.framing import Frame
from polydit.tasks.virtual_try_on.sharpness import sharpened
from polydit.tasks.virtual_try_on.warping import WarpingTokenGroupDiT


@pytest.fixture
def model(monkeypatch):
    """Copies everything from its own place, without a change of light."""
    small = WarpingTokenGroupDiT(
        conditions={"person": "shared", "garment": "beside"}, input_size=[16, 12], patch_size=4, in_channels=3,
        hidden_size=16, depth=1, num_heads=2, num_classes=None, position="rope", warp_width=16, warp_heads=2,
    )  # fmt: skip
    maps = torch.zeros(1, 4, 16, 12)
    maps[:, 2] = 40.0
    monkeypatch.setattr(small, "maps", lambda person, garment: maps)
    return small, maps


def stripes(height, width):
    """One pixel wide: at a quarter of the size they are grey."""
    picture = torch.ones(1, 3, height, width)
    picture[..., ::2] = -1
    return picture


def enlarged(garment, frame):
    shown = Frame.onto_white(garment, frame.size)
    return shown, frame.enlarge(shown)


def test_what_is_copied_is_as_sharp_as_the_garment(model):
    garment, frame = stripes(64, 48), Frame.fitting((64, 48), (16, 12))
    shown, made = enlarged(garment, frame)
    assert float((made - garment).abs().mean()) > 0.9
    found = sharpened(made, model[0], torch.zeros_like(shown), shown, garment, frame)
    torch.testing.assert_close(found, garment)


def test_without_trust_and_at_the_networks_size_nothing_changes(model):
    network, maps = model
    garment, frame = stripes(64, 48), Frame.fitting((64, 48), (16, 12))
    shown, made = enlarged(garment, frame)
    same = Frame.fitting((16, 12), (16, 12))
    assert sharpened(shown, network, torch.zeros_like(shown), shown, garment, same) is shown
    maps[:, 2] = -3.0
    assert torch.equal(sharpened(made, network, torch.zeros_like(shown), shown, garment, frame), made)


def test_places_are_those_of_the_framed_garment(model):
    """A wide garment lies in the middle of the network's picture, white above and below it."""
    garment, frame = stripes(32, 48), Frame.fitting((64, 48), (16, 12))
    shown, made = enlarged(garment, frame)
    found = sharpened(made, model[0], torch.zeros_like(shown), shown, garment, frame)
    assert torch.equal(found[..., :15, :], torch.ones(1, 3, 15, 48))
    assert float((found[..., 17:47, :] - garment[..., 1:31, :]).abs().mean()) < 0.01
    assert torch.equal(found[..., 49:, :], torch.ones(1, 3, 15, 48))


def test_light_falls_on_the_copy(model):
    network, maps = model
    maps[:, 3] = -torch.log(torch.tensor(2.0))
    garment, frame = stripes(64, 48), Frame.fitting((64, 48), (16, 12))
    shown, _ = enlarged(garment, frame)
    dark = F.interpolate((shown + 1) / 2 - 1, (64, 48), mode="bicubic", antialias=True)
    found = sharpened(dark, network, torch.zeros_like(shown), shown, garment, frame)
    torch.testing.assert_close(found, (garment + 1) / 2 - 1)
