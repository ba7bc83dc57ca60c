import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut

from polydit.core.data.composites import CompositeOptions, blend
from polydit.core.data.synthetic_clips import ClipOptions, SyntheticClips
from polydit.core.errors import PolyditError
from polydit.core.metrics.video import warp_back


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    Image.fromarray(astronaut()[::2, ::2]).resize((512, 512), Image.Resampling.BICUBIC).save(folder / "p.png")
    rows, columns = np.indices((64, 48))
    disc = (np.hypot(rows - 32, (columns - 24) * 1.3) < 30) * 255
    colour = np.stack([rows * 4, columns * 5, rows + columns], -1)
    Image.fromarray(np.dstack([colour, disc]).astype(np.uint8)).save(folder / "c.png")
    return [folder / "p.png"], [folder / "c.png"]


def clips(files, **options):
    looks = CompositeOptions.plain(scale=(0.3, 0.6), photo_zoom=(0.5, 0.6))
    return SyntheticClips(*files, size=(64, 96), options=ClipOptions(frames=6, **options), looks=looks)


def test_the_same_seed_gives_the_same_clip(files):
    make = clips(files, objects=(1, 2), noise=4.0, light=0.2)
    one, same, other = (make(np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert np.array_equal(one.frames, same.frames)
    assert not np.array_equal(one.frames, other.frames)
    assert one.frames.shape == (6, 64, 96, 3)
    assert one.flow.shape == one.background_flow.shape == (5, 64, 96, 2)


def test_frames_are_the_layers_over_the_background(files):
    clip = clips(files, objects=(2, 2))(np.random.default_rng(0))
    assert clip.layers.shape == (2, 6, 64, 96, 4)
    for number in range(6):
        exact = blend(clip.background[number], clip.layers[:, number])
        assert np.abs(clip.frames[number] - exact).max() <= 0.51
    outside = ~clip.masks
    assert np.array_equal(clip.frames[outside], clip.background[outside])


def test_the_flow_is_where_things_go(files):
    """Frames warped by it agree; by the flow of another clip they do not."""
    make = clips(files, objects=(0, 0), still=0.0, pan=0.05)
    clip = make(np.random.default_rng(7))
    inner = (slice(8, -8), slice(8, -8))
    for number in range(5):
        back = warp_back(clip.frames[number + 1].astype(np.float32), clip.flow[number])
        off = np.abs(back - clip.frames[number])[inner].mean()
        apart = np.abs(clip.frames[number + 1].astype(float) - clip.frames[number])[inner].mean()
        assert off < 0.35 * apart


def test_a_cut_out_carries_its_own_flow(files):
    clip = clips(files, objects=(1, 1), still=1.0, object_speed=0.1)(np.random.default_rng(5))
    inside = clip.alpha[:-1] > 0.99
    assert inside.any()
    assert not clip.background_flow.any()
    assert np.abs(clip.flow[inside]).max() > 0.5
    assert not clip.flow[clip.alpha[:-1] == 0].any()
    # The alpha goes where its flow says.
    back = warp_back(clip.alpha[1][..., None], clip.flow[0])[..., 0]
    assert back[inside[0]].mean() > 0.97


def test_a_camera_that_stands_still_gives_equal_frames(files):
    clip = clips(files, objects=(0, 0), still=1.0)(np.random.default_rng(0))
    assert (clip.frames == clip.frames[0]).all()
    assert clip.layers.shape[0] == 0
    assert not clip.masks.any()


def test_reserved_pictures_are_refused(tmp_path):
    with pytest.raises(PolyditError, match="no corpus is here"):
        SyntheticClips.from_corpus(tmp_path)
