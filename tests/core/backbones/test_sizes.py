"""Parameter counts of the published sizes, to the unit, on the meta device."""

import pytest
import torch

from polydit.core.backbones import SIZES, make_dit

TOTAL = {  # frozen positions included
    "DiT-S/2": 32_963_360,
    "DiT-S/4": 32_945_024,
    "DiT-S/8": 33_148_160,
    "DiT-B/2": 130_512_416,
    "DiT-B/4": 130_475_648,
    "DiT-B/8": 130_881_536,
    "DiT-L/2": 458_102_816,
    "DiT-L/4": 458_053_760,
    "DiT-L/8": 458_594_816,
    "DiT-XL/2": 675_129_632,
    "DiT-XL/4": 675_074_432,
    "DiT-XL/8": 675_683_072,
    "LightningDiT-B/1": 130_556_192,
    "LightningDiT-L/2": 458_153_056,
    "LightningDiT-XL/1": 675_256_736,
    "LightningDiT-1p0B/1": 1_029_401_120,
    "LightningDiT-1p6B/1": 1_631_767_120,
}
VARIED = [
    ("DiT-XL/2", {"input_size": 64}, 676_014_368),
    ("LightningDiT-XL/1", {"qk_norm": "rms"}, 675_260_768),
    ("LightningDiT-XL/1", {"modulation_shift": False}, 600_874_400),
]


def build(name, **overrides):
    with torch.device("meta"):
        return make_dit(name, **overrides)


def count(model, trainable=False):
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


@pytest.mark.parametrize(("name", "total"), TOTAL.items())
def test_total(name, total):
    assert count(build(name)) == total


@pytest.mark.parametrize(("name", "overrides", "total"), VARIED)
def test_total_of_variants(name, overrides, total):
    assert count(build(name, **overrides)) == total


@pytest.mark.parametrize(
    ("name", "trainable"), [("DiT-XL/2", 674_834_720), ("LightningDiT-XL/1", 674_961_824)]
)
def test_trainable(name, trainable):
    assert count(build(name), trainable=True) == trainable


@pytest.mark.parametrize(("name", "keys"), [("DiT-XL/2", 292), ("DiT-L/2", 252), ("DiT-B/2", 132)])
def test_number_of_keys(name, keys):
    assert len(build(name).state_dict()) == keys


def test_sit_has_dits_weights_and_drops_the_variance():
    assert count(build("SiT-XL/2")) == count(build("DiT-XL/2")) == 675_129_632
    model = make_dit("SiT-S/8", input_size=16)
    assert (
        model(torch.zeros(1, 4, 16, 16), torch.zeros(1), torch.zeros(1, dtype=torch.long)).sample.shape[1]
        == 4
    )


@pytest.mark.parametrize("name", ["DiT", "DiT-XXL/2", "UNet-S/2", "DiT-S/", "DiT-S2"])
def test_unknown_name_lists_what_is_known(name):
    with pytest.raises(ValueError, match="no model named") as caught:
        make_dit(name)
    assert all(size in str(caught.value) for size in SIZES)
