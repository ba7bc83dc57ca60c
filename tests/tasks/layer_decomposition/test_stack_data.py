"""General stacks on disk as training sees them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import polydit
from polydit.core.alpha import composite
from polydit.core.data.corpus.manifest import split_of
from polydit.core.errors import PolyditError
from polydit.core.media import LayerStack, OutputWriter, PictureLayer, write_layers
from polydit.tasks.layer_decomposition.stack_data import StackData, Stacks, read_stack


def made(folder: Path, count: int, size: tuple[int, int] = (24, 32), **options) -> Path:
    """A stack of squares on an opaque ground."""
    height, width = size
    ground = np.full((height, width, 4), (200, 220, 240, 255), np.uint8)
    layers = [PictureLayer("ground", ground)]
    for index in range(1, count):
        pixels = np.full((8, 8, 4), (20 * index, 50, 90, 255), np.uint8)
        layers.append(PictureLayer(f"square {index}", pixels, x=8 + index, y=4 + index, **options))
    write_layers(OutputWriter(folder), "x", LayerStack(width, height, tuple(layers)))
    return folder / "x_layers.json"


def test_a_stack_is_read_as_it_is_seen(tmp_path: Path):
    file = made(tmp_path, 3, opacity=0.5)
    layers = read_stack(file)
    assert layers.shape == (3, 24, 32, 4)
    assert (layers[0, ..., 3] == 1).all()
    assert layers[1, ..., 3].max() == pytest.approx(0.5)
    hidden = made(tmp_path / "hidden", 3, visible=False)
    assert len(read_stack(hidden)) == 1
    with pytest.raises(PolyditError, match="is laid multiply; general stacks are plain layers"):
        read_stack(made(tmp_path / "blend", 2, blend_mode="multiply"))


def test_crops_hold_what_is_seen_and_tall_stacks_are_merged(tmp_path: Path):
    files = [made(tmp_path / "a", 2), made(tmp_path / "b", 6)]
    crops = Stacks(files, side=16, length=20, most=4, seed=3)
    counts = set()
    for index in range(20):
        layers = crops[index]["layers"]
        assert layers.shape[0] == 4
        assert layers.shape[2:] == (16, 16)
        assert 0 <= layers.min() <= layers.max() <= 1
        assert torch.equal(layers, crops[index]["layers"])
        counts.add(layers.shape[1])
    assert counts == {2, 4}
    whole, merged = (Stacks(files, 24, most=most)[1]["layers"] for most in (20, 4))
    assert (whole.shape[1], merged.shape[1]) == (6, 4)
    pictures = [
        composite(list(stack[None].unbind(2)), ["normal"] * stack.shape[1], backdrop=torch.ones(1, 3, 24, 24))
        for stack in (whole, merged)
    ]
    torch.testing.assert_close(*pictures, atol=1e-5, rtol=0)


def test_the_data_module_and_what_it_refuses(tmp_path: Path):
    names = [f"s{number}" for number in range(40)]
    val = [name for name in names if split_of("", name) == "val"]
    assert val
    for name in names:
        made(tmp_path / name, 2 + int(name[1:]) % 3)
    data = StackData(str(tmp_path), side=16, num_workers=0)
    data.setup()
    assert len(data.val_set) == len(val)
    assert next(iter(data.val_dataloader()))["layers"].shape[:2] == (1, 4)
    with pytest.raises(PolyditError, match="batch_size 2: stacks differ in their number of layers"):
        StackData(batch_size=2)
    with pytest.raises(PolyditError, match="has no train stacks; give a folder"):
        StackData(str(tmp_path / "nothing")).setup()


def test_the_config_of_general_stacks_reads_them():
    file = Path(polydit.__file__).parent / "configs/layer_decomposition/qwen_image_layered.yaml"
    data = yaml.safe_load(file.read_text())["data"]
    assert data["class_path"].endswith("stack_data.StackData")
    StackData(**data["init_args"])
