import numpy as np
import pytest
from skimage.data import astronaut

from polydit.core.metrics.video import (
    frame_psnr,
    frame_ssim,
    optical_flow,
    visible,
    warp_back,
    warping_error,
)

PICTURE = np.ascontiguousarray(astronaut()[::4, ::4])  # 128 x 128


def panning(count=4, step=2, side=80):
    return np.stack([PICTURE[20 : 20 + side, 4 + step * n : 4 + step * n + side] for n in range(count)])


def constant(step):
    """The flow of a camera that pans: what is seen moves to the left."""

    def flow(first, second):
        return np.broadcast_to(np.float32([-step, 0]), (*first.shape[:2], 2)).copy()

    return flow


def both_ways(step):
    """Forward first, then backward, as `warping_error` asks."""
    calls = []

    def flow(first, second):
        calls.append(1)
        return constant(step if len(calls) % 2 else -step)(first, second)

    return flow


def test_a_pan_under_its_true_flow_has_no_warping_error():
    assert warping_error(panning(), flow=both_ways(2)) == 0


def test_flicker_is_measured_exactly():
    clip = np.full((6, 32, 32, 3), 100, np.uint8)
    clip[1::2] += 10
    assert warping_error(clip, flow=both_ways(0)) == pytest.approx((10 / 255) ** 2, rel=1e-6)
    assert warping_error(clip[:1]) == 0


def test_estimated_flow_sees_a_pan_and_flicker_adds_to_it():
    clip = panning(3)
    rng = np.random.default_rng(0)
    flickering = (clip + rng.normal(0, 8, (3, 1, 1, 1))).clip(0, 255).astype(np.uint8)
    found = {method: optical_flow(clip[0], clip[1], method) for method in ("tvl1", "ilk")}
    for flow in found.values():
        assert np.abs(flow[20:60, 20:60] - [-2, 0]).mean() < 0.4
    calm = warping_error(clip)
    assert calm < 1e-3
    assert warping_error(flickering, clip) > 3 * calm
    assert warping_error(np.repeat(clip[:1], 3, 0), flow="ilk") == 0


def test_warping_takes_values_from_where_pixels_went():
    frame = np.arange(24, dtype=np.float32).reshape(4, 6, 1)
    flow = np.zeros((4, 6, 2), np.float32)
    flow[..., 0], flow[..., 1] = 1.5, 1
    back = warp_back(frame, flow)
    assert back[1, 2, 0] == (frame[2, 3, 0] + frame[2, 4, 0]) / 2
    assert back[3, 5, 0] == frame[3, 5, 0]


def test_what_is_covered_or_leaves_is_not_visible():
    forward = np.zeros((32, 32, 2), np.float32)
    backward = forward.copy()
    forward[10:20, 10:20, 0] = 6  # an object moves to the right over what stands still
    backward[10:20, 16:26, 0] = -6
    seen = visible(forward, backward)
    assert seen[2:8, 2:30].all()
    assert not seen[12:18, 21:25].any()  # will be covered
    assert seen[12:18, 12:18].all()  # the object's inside
    assert not seen[12:18, 10].any()  # its edge
    leaving = np.zeros((8, 8, 2), np.float32)
    leaving[..., 0] = 3
    assert not visible(leaving, -leaving)[:, 5:].any()


def test_frames_are_measured_one_by_one():
    clip = panning()
    worse = clip.copy()
    worse[1] = worse[1] ^ 1
    assert frame_psnr(worse, clip).tolist() == [100, pytest.approx(20 * np.log10(255)), 100, 100]
    for window in ("gaussian11", "uniform7", "uniform65"):
        found = frame_ssim(worse, clip, window)
        assert found[0] == pytest.approx(1)
        assert found[1] < 1 - 1e-5
    with pytest.raises(ValueError, match="choose 'gaussian11'"):
        frame_ssim(worse, clip, "uniform11")


def test_windows_give_different_figures():
    clip = panning(1)
    noisy = (clip + np.random.default_rng(0).normal(0, 12, clip.shape)).clip(0, 255).astype(np.uint8)
    found = [float(frame_ssim(noisy, clip, w)[0]) for w in ("gaussian11", "uniform7", "uniform65")]
    assert max(found) - min(found) > 0.02
