from itertools import pairwise

import pytest
import torch

from polydit.core.diffusion import LinearPath, Parameterization, sample
from polydit.core.time_windows import (
    CircularShift,
    averaged,
    from_ring,
    hand_over,
    mirrored,
    plain,
    plan_windows,
    stream_windows,
    to_ring,
)

LENGTHS = [1, 5, 8, 9, 16, 23]


def clip(frames, seed=0):
    return torch.randn(2, 3, frames, 4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pointwise(x, timestep=None):
    """Treats every frame by itself."""
    at = 0 if timestep is None else timestep.view(-1, 1, 1, 1, 1)
    return torch.tanh(x) * 2 + x.mean((-1, -2), keepdim=True) + at


def smoothing(x, timestep=None):
    """Mixes neighbouring frames."""
    around = torch.cat([x[:, :, :1], x, x[:, :, -1:]], 2)
    return (around[:, :, :-2] + around[:, :, 1:-1] + around[:, :, 2:]) / 3


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("overlap", [0, 3])
def test_windows_cover_a_clip(length, overlap):
    plan = plan_windows(length, 8, overlap)
    assert plan[0].start == 0
    assert plan[-1].stop == length
    for one, other in pairwise(plan):
        assert one.stop - other.start >= overlap
        assert other.stop > one.stop
    assert all(part.stop - part.start == min(8, length) for part in plan)


@pytest.mark.parametrize("length", LENGTHS)
def test_a_pointwise_network_gives_the_whole_clips_result_in_every_way(length):
    x = clip(length)
    t = torch.tensor([0.3, 0.6], dtype=torch.float64)
    whole = pointwise(x, t)
    for overlap in (0, 3):
        assert torch.allclose(plain(lambda v: pointwise(v, t), x, 8, overlap), whole)
        assert torch.allclose(averaged(pointwise, 8, overlap)(x, t), whole)
        assert torch.allclose(averaged(pointwise, 8, overlap, crossfade=False)(x, t), whole)
        assert torch.allclose(hand_over(lambda v, known: pointwise(v, t), x, 8, overlap), whole)
    for shift in (None, 1, 5):
        network = CircularShift(pointwise, 8, shift)
        for _ in range(3):
            assert torch.allclose(from_ring(network(to_ring(x), t), length), whole)


def test_sampling_in_a_ring_gives_the_whole_clips_result():
    parameterization = Parameterization(LinearPath(), "velocity")
    x = clip(13)
    whole = sample(pointwise, x, parameterization, 6)
    ring = sample(CircularShift(pointwise, 5), to_ring(x), parameterization, 6)
    assert torch.allclose(from_ring(ring, 13), whole)


def test_handed_over_frames_are_the_results_before():
    seen = []

    def network(window, known):
        seen.append(known)
        return window + 100

    x = clip(21)
    result = hand_over(network, x, 9, 2)
    assert seen[0] is None
    starts = [part.start for part in plan_windows(21, 9, 2)][1:]
    for known, start in zip(seen[1:], starts, strict=True):
        assert torch.equal(known[:, :, :2], result[:, :, start : start + 2])
    assert torch.equal(result, x + 100)


def test_every_window_of_a_ring_is_continuous():
    for length in (3, 8, 13):
        ring = to_ring(torch.arange(length, dtype=torch.float64).view(1, 1, length, 1, 1)).flatten()
        assert len(ring) == 2 * length - 2
        assert torch.equal((ring - ring.roll(-1)).abs(), torch.ones(len(ring), dtype=torch.float64))


def test_borders_move_with_every_call():
    borders = []

    def network(window, timestep):
        borders.append(int(window[0, 0, 0, 0, 0]))
        return window

    shifted = CircularShift(network, 6, 2)
    ring = torch.arange(24.0).view(1, 1, 24, 1, 1)
    for _ in range(3):
        shifted(ring, torch.zeros(1))
    assert borders == [2, 8, 14, 20, 4, 10, 16, 22, 6, 12, 18, 0]


def test_the_ring_has_no_seam_where_fixed_windows_do():
    """After some smoothing steps, fixed windows leave steps at their borders; moving ones and averages do not."""
    x = clip(48, 3)

    def jump(y):
        change = (y[:, :, 1:] - y[:, :, :-1]).abs().mean((0, 1, 3, 4))
        at = torch.zeros(47, dtype=torch.bool)
        at[7::8] = True
        return float(change[at].mean() / change[~at].mean())

    fixed, moving, overlapping = x, to_ring(x), x
    network = CircularShift(smoothing, 8)
    average = averaged(smoothing, 8, 4)
    for _ in range(12):
        fixed = plain(smoothing, fixed, 8)
        moving = network(moving, torch.zeros(2))
        overlapping = average(overlapping, torch.zeros(2))
    assert jump(fixed) > 3
    assert jump(from_ring(moving, 48)) < 1.5
    assert jump(overlapping) < 1.5


@pytest.mark.parametrize("length", [1, 8, 9, 20, 30])
def test_a_stream_is_cut_completely(length):
    windows = list(stream_windows(iter(range(length)), 9, 2, lambda n: -(-(n - 1) // 4) * 4 + 1))
    own = []
    for number, window in enumerate(windows):
        assert window.known == (2 if number else 0)
        assert window.frames[0] == window.start
        assert len(window.frames) % 4 == 1
        own += window.frames[window.known : len(window.frames) - window.padding]
    assert own == list(range(length))


def test_a_short_clip_is_continued_by_mirroring():
    assert mirrored("abc", 8) == list("abcbabcb")
    assert mirrored("a", 3) == list("aaa")
    (window,) = stream_windows("abc", 9, 2)
    assert ("".join(window.frames), window.padding, window.known) == ("abcbabcba", 6, 0)
