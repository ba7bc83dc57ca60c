import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from polydit.core.errors import PolyditError
from polydit.tasks.compression.context import MEAN_UNIT
from polydit.tasks.compression.video.groups import Coder, Group
from polydit.tasks.compression.video.model import VideoCompression
from polydit.tasks.compression.video.motion import BLOCK, LEVEL, WHITE, Reference, predict, search
from polydit.tasks.compression.video.synthesis import IntegerSynthesis
from polydit.tasks.compression.video.video_codec import VideoCodec

from .conftest import drift


def psnr(a, b):
    return 10 * np.log10(255**2 / ((np.asarray(a).astype(float) - b) ** 2).mean())


def reference_of(frame):
    return Reference(torch.from_numpy(frame.astype(np.int32)).permute(2, 0, 1) * LEVEL)


# -- motion ------------------------------------------------------------------------------------------------


def test_whole_vectors_move_pixels_exactly():
    frame = drift(1)[0]
    grid = (-(-64 // BLOCK), -(-80 // BLOCK))
    vectors = torch.tensor([4 * 3, -4 * 5]).expand(*grid, 2).to(torch.int32)
    moved, disagreement = predict(reference_of(frame), vectors)
    assert torch.equal(
        moved[:, :40, 20:], torch.from_numpy(frame[3:43, 15:75].astype(np.int32)).permute(2, 0, 1) * LEVEL
    )
    assert not disagreement.any()


def test_fractions_of_pixels_are_interpolated():
    x = np.arange(80.0)
    wave = np.repeat((127 + 100 * np.sin(x / 6))[None, :, None], 64, 0).repeat(3, 2)
    for quarter in (1, 2, 3):
        vectors = torch.tensor([0, quarter]).expand(4, 5, 2).to(torch.int32)
        found = predict(
            Reference(torch.from_numpy((wave * LEVEL).astype(np.int32)).permute(2, 0, 1)), vectors
        )[0]
        wanted = 127 + 100 * np.sin((x + quarter / 4) / 6)
        assert np.abs(found[0, 10, 8:70].numpy() / LEVEL - wanted[8:70]).max() < 0.35


def test_blocks_overlap_without_edges():
    rng = np.random.default_rng(0)
    frame = np.full((64, 80, 3), 90, np.uint8)
    vectors = torch.from_numpy(rng.integers(-40, 40, (4, 5, 2))).to(torch.int32)
    assert (predict(reference_of(frame), vectors)[0] == 90 * LEVEL).all()  # the weights sum to one
    ramp = np.repeat(np.arange(80, dtype=np.uint8)[None, :, None], 64, 0).repeat(3, 2)
    vectors = torch.zeros(4, 5, 2, dtype=torch.int32)
    vectors[:, 2:, 1] = 16  # 4 pixels
    moved, disagreement = predict(reference_of(ramp), vectors)
    change = np.diff(moved[0, 30].numpy() / LEVEL)
    assert change.max() < 1.5
    assert disagreement[30, 32] == 4 * LEVEL
    assert not disagreement[30, :20].any()


def test_search_finds_motion():
    frames = drift(2, 96, 128, step=2.25)
    vectors = search(reference_of(frames[0]), torch.from_numpy(frames[1]).permute(2, 0, 1).float(), None, 4.0)
    # The background moves to the left: it comes from the right.
    background = vectors[4:, 3:-1].float()
    assert (background - torch.tensor([0.0, 9.0])).abs().median() <= 1
    moved = predict(reference_of(frames[0]), vectors)[0].permute(1, 2, 0).numpy() / LEVEL
    inner = (slice(40, 96), slice(0, 110))  # nothing is uncovered there
    assert psnr(frames[1][inner], moved[inner]) > psnr(frames[1][inner], frames[0][inner]) + 10


# -- synthesis ---------------------------------------------------------------------------------------------


def test_integer_synthesis_inverts_the_analysis(trainable):
    frame = torch.from_numpy(drift(1, 64, 128)[0]).permute(2, 0, 1).float()
    for index in (0, 77, 240):
        coarse, fine = trainable.analyse(frame[None] - 128, index)
        pixels = trainable.synthesis(coarse * MEAN_UNIT, fine * MEAN_UNIT, index) / LEVEL + 128
        # Coefficients were not rounded, so only fixed point is lost.
        assert (pixels - frame).abs().max() < 0.2


def test_synthesis_gives_whole_numbers_whatever_the_order_of_sums(trainable):
    synthesis: IntegerSynthesis = trainable.synthesis
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(-3000, 3000, (1, 192, 1, 2), generator=generator).float()
    fine = torch.randint(-3000, 3000, (1, 189, 8, 16), generator=generator).float()
    whole = synthesis(coarse, fine, 100)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2 if threads == 1 else 1)
        assert torch.equal(synthesis(coarse, fine, 100), whole)
    finally:
        torch.set_num_threads(threads)
    assert whole.dtype == torch.int32
    assert int(synthesis.frame(whole).max()) <= WHITE


def test_constants_are_far_from_where_rounding_turns(codec):
    """No machine's cosine can turn the transform's integers; gains and border filter are stored."""
    dct = codec.intra.dct.double() * 2**14
    assert ((dct - dct.floor()) - 0.5).abs().min() > 1e-3
    assert {"synthesis.dct", "synthesis.border", "synthesis.colour", "synthesis.factors"} <= set(
        codec.state_dict()
    )


# -- groups ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [20, 120, 220])
def test_a_group_decodes_to_what_the_encoder_predicted_from(codec, index):
    frames = drift(5)
    coder = Coder(codec)
    group = coder.encode(frames, index)
    found = list(coder.decode(group, 5, (64, 80), index))
    assert all(frame.shape == (64, 80, 3) for frame in found)
    values = [psnr(a, b) for a, b in zip(found, frames, strict=True)]
    assert min(values) > values[0] - 2.5  # nothing drifts away


def test_prediction_saves_bytes(codec):
    coder, frames = Coder(codec), drift(5, objects=False)
    together = len(coder.encode(frames, 120).data)
    alone = sum(len(coder.encode(frames[i : i + 1], 120).data) for i in range(5))
    assert together < 0.7 * alone


def test_more_quality_is_more_bytes_and_less_error(codec):
    coder, frames = Coder(codec), drift(4)
    sizes, errors = [], []
    for index in (0, 80, 160, 240):
        group = coder.encode(frames, index)
        sizes.append(len(group.data))
        errors.append(-psnr(np.stack(list(coder.decode(group, 4, (64, 80), index))), frames))
    assert sizes == sorted(sizes)
    assert errors == sorted(errors, reverse=True)


def test_a_cut_is_coded_without_prediction(codec):
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (8, 10, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    smooth = np.full((64, 80, 3), 100, np.uint8)
    coder = Coder(codec)
    group = coder.encode([blocks, smooth], 120)
    found = list(coder.decode(group, 2, (64, 80), 120))
    assert psnr(found[1], smooth) > 35
    assert len(group.data) < 1.1 * len(coder.encode([blocks], 120).data) + 60


DECODE = """
import sys, hashlib, torch, numpy as np
torch.set_num_threads(int(sys.argv[1]))
from polydit.tasks.compression.video.small_system import open_small
from polydit.tasks.compression.video.groups import Group
system = open_small(sys.argv[2])
data = open(sys.argv[3], "rb").read()
frames = system.decode(Group(data, int(sys.argv[4])), 0, 4, (64, 80), 130)
print(hashlib.sha256(np.stack(list(frames)).tobytes()).hexdigest())
"""


def test_a_fresh_process_with_other_threads_decodes_to_the_same_frames(codec, folder, tmp_path):
    import hashlib

    coder = Coder(codec)
    group = coder.encode(drift(4), 130)
    frames = np.stack(list(coder.decode(group, 4, (64, 80), 130)))
    (tmp_path / "group").write_bytes(group.data)
    threads = 2 if torch.get_num_threads() == 1 else 1
    command = [sys.executable, "-c", DECODE, threads, folder, tmp_path / "group", group.symbols]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == hashlib.sha256(frames.tobytes()).hexdigest()


def test_damage_is_refused(codec):
    coder = Coder(codec)
    group = coder.encode(drift(3), 130)
    refused = 0
    for place in range(0, len(group.data), max(1, len(group.data) // 12)):
        data = bytearray(group.data)
        data[place] ^= 0x55
        with pytest.raises(PolyditError, match=r"clip\.pdc: "):
            list(coder.decode(Group(bytes(data), group.symbols), 3, (64, 80), 130, "clip.pdc"))
        refused += 1
    assert refused >= 12


# -- weights and training ----------------------------------------------------------------------------------


def test_saved_integers_are_read_again(codec, folder):
    from polydit.tasks.compression.video.pipeline import VideoCompressionPipeline

    read = VideoCompressionPipeline.from_pretrained(folder, local_files_only=True).codec
    assert isinstance(read, VideoCodec)
    for name, value in codec.state_dict().items():
        assert torch.equal(read.state_dict()[name], value), name
    frames = drift(3)
    assert Coder(read).encode(frames, 90).data == Coder(codec).encode(frames, 90).data
    assert Coder(read.frozen_copy()).encode(frames, 90).data == Coder(codec).encode(frames, 90).data


def test_training_lowers_the_rate_of_residuals():
    torch.manual_seed(0)
    model = VideoCompression(VideoCodec(width=8, coarse_width=8, inter_width=8, inter_coarse_width=8))
    clips = torch.from_numpy(np.stack([drift(3, 64, 64, step) for step in (0.6, 1.7)])).permute(0, 1, 4, 2, 3)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.01)
    first = None
    for _ in range(25):
        terms, output = model.losses({"frames": clips}, first=2)
        first = first or {name: float(value) for name, value in terms.items()}
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert float(terms["rate"]) < 0.7 * first["rate"]
    assert float(terms["first_rate"]) < first["first_rate"]


def test_the_context_model_uses_what_it_knows():
    """Bits of a residual change with the prediction that it is told, and only the trained network's means use it."""
    torch.manual_seed(0)
    model = VideoCompression(VideoCodec(width=8, coarse_width=8, inter_width=8, inter_coarse_width=8))
    clips = torch.from_numpy(drift(3, 64, 64)[None]).permute(0, 1, 4, 2, 3).float()
    known, _ = model.simulate(clips, 100, 80)
    seen = []
    for change in (0, 40 * LEVEL):
        known.prediction[:, :, :, 32:] += change * (torch.arange(32) % 2).to(torch.int32)
        tables = []

        def keep(channels, mask, mean, index, tables=tables):
            tables.append(index)
            return torch.zeros_like(mean)

        model.backbone.inter.code(model.backbone.synthesis, known, 80, keep, keep)
        seen.append(torch.cat([t.flatten() for t in tables]))
    assert not torch.equal(*seen)
