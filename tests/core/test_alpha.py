from __future__ import annotations

from pathlib import Path

import pytest
import torch

from polydit.core.alpha import (
    BLEND_MODES,
    area_resize,
    composite,
    fill_smoothly,
    join,
    over,
    pad_rgb,
    recompose,
    solve_layers,
    split,
    unpremultiply,
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_over_is_associative_and_one_layer_of_object_and_shadow_is_both():
    a, b, c = (random(2, 4, 5, 6, seed=s) for s in range(3))
    torch.testing.assert_close(over(a, over(b, c)), over(over(a, b), c))
    picture = random(2, 3, 5, 6, seed=3)
    torch.testing.assert_close(over(a, over(b, picture)), over(over(a, b), picture))
    shadow = join(torch.zeros(2, 3, 5, 6, dtype=torch.float64), random(2, 1, 5, 6, seed=4))
    both = over(a, shadow)
    (colour, alpha), (_, dark) = split(a), split(shadow)
    torch.testing.assert_close(both[:, 3:], 1 - (1 - alpha) * (1 - dark))
    torch.testing.assert_close(both[:, :3] * both[:, 3:], alpha * colour)


def test_over_at_the_ends():
    below, above = random(1, 3, 4, 4), random(1, 4, 4, 4, seed=1)
    above[:, 3] = 0
    assert torch.equal(over(above, below), below)
    above[:, 3] = 1
    assert torch.equal(over(above, below), above[:, :3])
    assert torch.equal(over(above, below, opacity=0.0), below)
    with pytest.raises(ValueError, match="dissolve"):
        over(above, below, "dissolve")
    with pytest.raises(ValueError, match="5"):
        split(random(5, 2, 2))


def scalar_modes(b: float, s: float) -> dict[str, float]:
    """The W3C's formulas, a second time."""
    d = ((16 * b - 12) * b + 4) * b if b <= 0.25 else b**0.5
    return {
        "normal": s,
        "multiply": b * s,
        "screen": 1 - (1 - b) * (1 - s),
        "overlay": 2 * b * s if b <= 0.5 else 1 - 2 * (1 - b) * (1 - s),
        "hard-light": 2 * b * s if s <= 0.5 else 1 - 2 * (1 - b) * (1 - s),
        "darken": min(b, s),
        "lighten": max(b, s),
        "color-dodge": 0 if b == 0 else 1 if s == 1 else min(1, b / (1 - s)),
        "color-burn": 1 if b == 1 else 0 if s == 0 else 1 - min(1, (1 - b) / s),
        "soft-light": b - (1 - 2 * s) * b * (1 - b) if s <= 0.5 else b + (2 * s - 1) * (d - b),
        "difference": abs(b - s),
        "exclusion": b + s - 2 * b * s,
        "plus": min(1, b + s),
    }


def test_blend_modes_are_the_w3cs():
    for b in (0.0, 0.1, 0.4, 0.75, 1.0):
        for s in (0.0, 0.2, 0.5, 0.8, 1.0):
            expected = scalar_modes(b, s)
            assert set(expected) == set(BLEND_MODES)
            for name, value in expected.items():
                below, above = torch.tensor([b]).double(), torch.tensor([s]).double()
                assert BLEND_MODES[name](below, above).item() == pytest.approx(value, abs=1e-6), (name, b, s)


def test_black_shadow_and_white_highlight_need_no_blend_mode():
    picture, strength = random(1, 3, 4, 4), random(1, 1, 4, 4, seed=1)
    black, white, one = torch.zeros_like(picture), torch.ones_like(picture), torch.ones_like(strength)
    shade = over(join((1 - strength).expand_as(picture), one), picture, "multiply")
    torch.testing.assert_close(shade, over(join(black, strength), picture), atol=1e-12, rtol=0)
    light = over(join(strength.expand_as(picture), one), picture, "screen")
    torch.testing.assert_close(light, over(join(white, strength), picture), atol=1e-12, rtol=0)


def test_blend_over_a_transparent_backdrop_is_the_layer_itself():
    above = random(1, 4, 3, 3)
    nothing = torch.zeros_like(above)
    for mode in BLEND_MODES:
        torch.testing.assert_close(over(above, nothing, mode), above)


def test_composite_of_a_stack():
    layers = [random(4, 5, 5, seed=s) for s in range(3)]
    backdrop = random(3, 5, 5, seed=9)
    by_hand = over(layers[2], over(layers[0], backdrop), "multiply", 0.5)
    mine = composite(layers, ["normal", "screen", "multiply"], [1.0, 1.0, 0.5], [True, False, True], backdrop)
    assert torch.equal(mine, by_hand)
    flat = composite(torch.stack(layers))
    torch.testing.assert_close(over(flat, backdrop), composite(layers, backdrop=backdrop))
    with pytest.raises(ValueError, match="one layer"):
        composite([])


def test_gradients_pass_and_stay_finite_at_the_ends():
    layers = [random(4, 3, 3, seed=s).requires_grad_() for s in range(2)]
    with torch.no_grad():
        layers[1][3, 0] = 0
        layers[0][3, 0] = 0
    for mode in BLEND_MODES:
        composite(layers, ["normal", mode]).sum().backward()
    assert all(torch.isfinite(layer.grad).all() for layer in layers)
    pair = [random(4, 2, 2, seed=seed).requires_grad_() for seed in (5, 6)]
    torch.autograd.gradcheck(lambda a, b: over(a, b, "multiply"), pair)


def test_unpremultiply():
    colour, alpha = random(3, 4, 4), random(1, 4, 4, seed=1) * 0.9 + 0.1
    torch.testing.assert_close(unpremultiply(colour * alpha, alpha), colour)
    assert unpremultiply(colour, torch.zeros_like(alpha)).abs().max() == 0


def test_solved_layers_make_the_picture_whatever_was_estimated():
    image, background, alpha = (
        random(2, 3, 16, 16),
        random(2, 3, 16, 16, seed=1),
        random(2, 1, 16, 16, seed=2),
    )
    alpha[..., :4] = 0
    alpha[..., 4:6] = 1
    back, front = solve_layers(image, background, alpha)
    torch.testing.assert_close(recompose(back, front), image, atol=1e-9, rtol=0)
    assert torch.equal(back[..., :4], image[..., :4])
    assert front[:, 3:][..., :4].abs().max() == 0
    assert (front[:, 3:] >= alpha - 1e-12).all()
    for layer in (back, front):
        assert layer.min() >= 0
        assert layer.max() <= 1


def test_true_layers_are_solved_to_themselves():
    background, front = random(1, 3, 8, 8), random(1, 4, 8, 8, seed=1)
    front[:, 3:] = front[:, 3:] * 0.8 + 0.1
    back, solved = solve_layers(recompose(background, front), background, front[:, 3:])
    torch.testing.assert_close(back, background)
    torch.testing.assert_close(solved, front)


def test_padding_keeps_what_is_visible_and_invents_nothing_else():
    colour, alpha = random(1, 3, 21, 34), (random(1, 1, 21, 34, seed=1) > 0.6).double()
    alpha[..., 20:] = 0
    for options in ({}, {"exact": False}, {"factor": 2.0}):
        padded = pad_rgb(colour, alpha, **options)
        assert torch.equal(torch.where(alpha == 1, padded, 0), torch.where(alpha == 1, colour, 0))
        assert torch.isfinite(padded).all()
        assert padded.min() >= 0
        assert padded.max() <= 1 + 1e-9
    constant = torch.full_like(colour, 0.3)
    torch.testing.assert_close(pad_rgb(constant, alpha), constant)
    assert pad_rgb(colour, torch.zeros_like(alpha)).abs().max() == 0
    partly = random(1, 1, 21, 34, seed=2) * 0.8 + 0.1
    assert torch.equal(pad_rgb(colour, partly), colour)
    assert not torch.equal(pad_rgb(colour, partly, exact=False), colour)
    with pytest.raises(ValueError, match="more than 1"):
        pad_rgb(colour, alpha, factor=1)


def test_area_resize_counts_shares():
    line = torch.tensor([[0.0, 1.0, 2.0]]).double()
    torch.testing.assert_close(area_resize(line, 1, 2), torch.tensor([[1 / 3, 5 / 3]]).double())
    picture = random(2, 3, 12, 8)
    torch.testing.assert_close(area_resize(picture, 6, 4), torch.nn.functional.avg_pool2d(picture, 2))


def test_padding_is_the_published_one():
    """Against the official code's result (OpenCV's area and bilinear resizing)."""
    from safetensors.torch import load_file

    folder = Path(__file__).parents[1] / "data" / "golden" / "layerdiffuse_pad_rgb"
    given = load_file(folder / "pad_rgb.safetensors")
    rgba = given["rgba"].permute(2, 0, 1)[None].float() / 255
    padded = pad_rgb(rgba[:, :3], rgba[:, 3:], exact=False)
    torch.testing.assert_close(padded[0].permute(1, 2, 0), given["padded"], atol=1e-4, rtol=0)


def test_a_membrane_keeps_what_is_known_and_continues_ramps():
    y, x = torch.meshgrid(torch.linspace(0, 1, 40), torch.linspace(0, 1, 52), indexing="ij")
    picture = torch.stack([x, y, 0.5 * x + 0.5 * y]).double()[None]
    known = torch.ones(1, 1, 40, 52, dtype=torch.float64)
    known[..., 12:28, 14:38] = 0
    hidden = torch.where(known > 0, picture, torch.rand_like(picture))
    filled = fill_smoothly(hidden, known, sweeps=40)
    assert torch.equal(torch.where(known > 0, filled, 0), torch.where(known > 0, picture, 0))
    assert (filled - picture).abs().max() < 0.02
    assert (fill_smoothly(hidden, known) - picture).abs().max() < 0.05
    assert (pad_rgb(hidden, known) - picture).abs().max() > (filled - picture).abs().max()
    assert fill_smoothly(hidden, known * 0).abs().max() == 0
    grey = random(1, 3, 9, 30, seed=3)
    assert fill_smoothly(grey, (grey[:, :1] > 0.7).double()).max() <= 1
