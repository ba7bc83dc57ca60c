"""Motion of the camera, and what is carried along it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from clips_of_tests import scene

from polydit.tasks.video_inpainting.baselines import BASELINES
from polydit.tasks.video_inpainting.camera import motions, project
from polydit.tasks.video_inpainting.evaluate import hole_psnr
from polydit.tasks.video_inpainting.propagation import agree, propagate


def as_tensors(given, masks):
    return torch.from_numpy(given.copy()).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(masks)[:, None]


def test_motion_is_found_beside_what_is_masked(moving):
    video, hole = as_tensors(moving[0], moving[1])
    centre = torch.tensor([[28.0, 20.0]], dtype=torch.float64)
    for matrix in motions(video, hole):
        moved = project(matrix, centre) - centre
        assert moved[0, 0] == pytest.approx(-1.5, abs=0.1)  # the texture goes left as the camera goes right
        assert moved[0, 1] == pytest.approx(-0.5, abs=0.1)


def test_turn_and_zoom_are_found():
    rng = np.random.default_rng(0)
    picture = torch.from_numpy(rng.random((1, 3, 12, 16), np.float32))
    picture = torch.nn.functional.interpolate(picture, (96, 128), mode="bicubic").clamp(0, 1)
    angle, zoom = 0.03, 1.02
    theta = torch.tensor(
        [[np.cos(angle), -np.sin(angle) * 96 / 128, 0.02], [np.sin(angle) * 128 / 96, np.cos(angle), 0]]
    )
    grid = torch.nn.functional.affine_grid((zoom * theta)[None].float(), (1, 3, 96, 128), align_corners=True)
    turned = torch.nn.functional.grid_sample(picture, grid, padding_mode="reflection", align_corners=True)
    [matrix] = motions(torch.cat([turned, picture]), torch.zeros(2, 1, 96, 128, dtype=torch.bool))
    corner = torch.tensor([[20.0, 20.0], [100.0, 70.0]], dtype=torch.float64)
    unit = (corner / torch.tensor([127.0, 95.0]) * 2 - 1).float()
    wanted = (
        (torch.cat([unit, torch.ones(2, 1)], 1) @ (zoom * theta).float().T + 1)
        / 2
        * torch.tensor([127.0, 95.0])
    )
    assert (project(matrix, corner) - wanted).abs().max() < 0.25


def test_nothing_to_see_is_no_motion():
    flat = torch.full((2, 3, 32, 32), 0.5)
    [matrix] = motions(flat, torch.ones(2, 1, 32, 32, dtype=torch.bool))
    assert torch.equal(matrix, torch.eye(3, dtype=torch.float64))


def test_holes_are_filled_from_other_frames_and_nothing_else_changes(moving):
    given, masks, truth = moving
    video, hole = as_tensors(given, masks)
    found = propagate(video, hole)
    outside = ~hole.expand_as(video)
    assert torch.equal(found.frames[outside], video[outside])
    assert (found.seen[hole] > 0.5).float().mean() > 0.95
    made = (found.frames * 255).round().byte().permute(0, 2, 3, 1).numpy()
    ours = hole_psnr(made, truth, masks)
    others = {name: hole_psnr(method(given, masks), truth, masks) for name, method in BASELINES.items()}
    assert ours > 28
    assert ours > max(others.values()) + 0.5
    assert ours > others["biharmonic"] + 2


def test_what_no_frame_shows_is_said_and_agreed_on():
    given, _, _ = scene(frames=6, pan=0.0)
    masks = np.zeros(given.shape[:3], bool)
    masks[:, 10:30, 20:40] = True
    video, hole = as_tensors(np.repeat(given[:1], 6, 0), masks)
    found = propagate(video, hole)
    assert (found.seen[hole] == 0).all()
    inside = found.frames[:, :, 10:30, 20:40]
    assert (inside - inside[:1]).abs().max() < 0.02, "the guess stands still with the camera"


def test_frames_agree_on_the_mean():
    frames = torch.zeros(3, 3, 8, 8)
    for number in range(3):
        frames[number] = number / 2
    loose = torch.zeros(3, 1, 8, 8, dtype=torch.bool)
    loose[:, :, 2:6, 2:6] = True
    made = agree(frames, loose, [torch.eye(3, dtype=torch.float64)] * 3, [0, 0, 0])
    assert torch.allclose(made[:, :, 3, 3], torch.full((3, 3), 0.5))
    assert torch.equal(made[~loose.expand_as(made)], frames[~loose.expand_as(made)])


def test_nothing_is_carried_over_a_cut(moving):
    """Two scenes in one clip are filled as each by itself is."""
    given, masks, _ = moving
    other = np.roll(given[:, ::-1, ::-1], 9, axis=2)[..., ::-1]
    video, hole = as_tensors(np.concatenate([given[:6], other[:6]]), np.concatenate([masks[:6], masks[:6]]))
    found = propagate(video, hole)
    assert found.scenes == (0,) * 6 + (1,) * 6
    alone = [propagate(video[part], hole[part]) for part in (slice(0, 6), slice(6, 12))]
    assert all(set(one.scenes) == {0} for one in alone)
    assert torch.allclose(found.frames, torch.cat([one.frames for one in alone]), atol=2e-3)
    assert torch.allclose(found.seen, torch.cat([one.seen for one in alone]), atol=2e-3)


def test_no_hole_is_no_work(moving):
    video, hole = as_tensors(moving[0], moving[1])
    found = propagate(video, torch.zeros_like(hole))
    assert found.frames is video
    assert (found.seen == 1).all()
