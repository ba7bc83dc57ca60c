"""Published layouts: reference vectors, round trips, and what a bad file gets to hear."""

import argparse
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from polydit.core.backbones import load_official, make_dit, read_official_file, save_official
from polydit.core.errors import PolyditError

GOLDEN = Path(__file__).parents[2] / "data" / "golden"
CASES = [
    (system, entry)
    for system in ("dit", "sit", "lightningdit")
    for entry in json.loads((GOLDEN / system / "meta.json").read_text())["entries"]
    if "weights" in entry["files"]
]
IDS = [f"{system}-{entry['name']}" for system, entry in CASES]


def read(system, entry, part):
    return load_file(GOLDEN / system / entry["files"][part])


@pytest.fixture(params=CASES, ids=IDS)
def case(request):
    system, entry = request.param
    return system, entry, load_official(system, read(system, entry, "weights"), **entry["config"])


def test_all_published_entries_are_here():
    assert IDS == [
        "dit-main",
        "sit-model",
        "lightningdit-published",
        "lightningdit-qknorm_rms",
        "lightningdit-layernorm_qknorm_wo_shift",
    ]


@pytest.mark.parametrize("with_gradients", [False, True])
def test_reference_vectors(case, with_gradients):
    system, entry, model = case
    x, expected, tolerance = read(system, entry, "inputs"), read(system, entry, "outputs"), entry["tolerance"]
    seen = {}

    def keep(name):
        return lambda module, args, out: seen.update({name: out})

    first = model.blocks[0]
    first.register_forward_pre_hook(
        lambda module, args: seen.update(embedded_tokens=args[0], conditioning=args[1])
    )
    first.register_forward_hook(keep("after_block_0"))
    first.attn.register_forward_hook(keep("attention_0"))
    first.mlp.register_forward_hook(keep("mlp_0"))
    model.blocks[-1].register_forward_hook(keep("after_last_block"))
    with torch.set_grad_enabled(with_gradients):
        sample = model(x["x"], x["t"], x["y"]).sample

    assert not model.training
    torch.testing.assert_close(sample, expected["forward"], atol=tolerance["atol"], rtol=tolerance["rtol"])
    inside = [key for key in expected if key.startswith("intermediate.")]
    assert inside
    for key in inside:
        value = seen[key.removeprefix("intermediate.")]
        torch.testing.assert_close(
            value, expected[key], atol=tolerance["intermediate_atol"], rtol=tolerance["rtol"], msg=key
        )


def test_round_trip_is_bit_exact(case):
    system, entry, model = case
    weights, back = read(system, entry, "weights"), save_official(system, model)
    assert back.keys() == weights.keys()
    for key, value in weights.items():
        assert torch.equal(back[key], value.float()), key
    again = load_official(system, back, **entry["config"])
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_element_count_is_the_published_one(case):
    system, entry, model = case  # LightningDiT's counts its rotary tables
    assert sum(v.numel() for v in save_official(system, model).values()) == entry["parameter_count"]


# -- files ------------------------------------------------------------------------------------------------------


@pytest.fixture
def weights():
    return {"a.weight": torch.arange(6.0).reshape(2, 3)}


def test_training_checkpoint_gives_the_average(tmp_path, weights):
    content = {
        "model": {"a.weight": torch.zeros(2, 3)},
        "ema": weights,
        "opt": {"state": {}, "param_groups": [{"lr": 1e-4}]},
        "args": argparse.Namespace(model="DiT-XL/2", global_seed=0),
    }
    torch.save(content, tmp_path / "0400000.pt")
    assert torch.equal(read_official_file(tmp_path / "0400000.pt")["a.weight"], weights["a.weight"])
    raw = read_official_file(tmp_path / "0400000.pt", prefer_ema=False)
    assert torch.equal(raw["a.weight"], torch.zeros(2, 3))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_bare_state_dict(tmp_path, weights, suffix):
    path = tmp_path / f"w{suffix}"
    torch.save(weights, path) if suffix == ".pt" else save_file(weights, path)
    assert torch.equal(read_official_file(path)["a.weight"], weights["a.weight"])


class Attack:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (Path(self.target),)


@pytest.mark.parametrize("wrap", [lambda a: a, lambda a: {"ema": {"w": torch.zeros(1)}, "args": a}])
def test_pickle_with_code_is_refused_and_not_run(tmp_path, wrap):
    path, target = tmp_path / "evil.pt", tmp_path / "was_run"
    torch.save(wrap(Attack(target)), path)
    with pytest.raises(PolyditError, match=r"evil\.pt: refused, this pickle would run code") as caught:
        read_official_file(path)
    assert "\n" not in str(caught.value)
    assert not target.exists()
    pickle.loads(pickle.dumps(Attack(target)))  # the attack is a real one
    assert target.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable checkpoint"),
        (b"PK\x03\x04 cut off", "not a readable checkpoint"),
        (None, "no such file"),
    ],
)
def test_broken_files_are_named(tmp_path, content, message):
    path = tmp_path / "w.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PolyditError, match=rf"w\.pt: .*{message}"):
        read_official_file(path)


def test_file_without_state_dict_is_named(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(PolyditError, match="holds no state dict"):
        read_official_file(tmp_path / "w.pt")


# -- keys -------------------------------------------------------------------------------------------------------


def changed(weights, change):
    weights = dict(weights)
    change(weights)
    return weights


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("blocks.1.attn.qkv.weight"), r"missing \['blocks.1.attn.qkv.weight'\]"),
        (lambda w: w.update(extra=torch.zeros(1)), r"unexpected \['extra'\]"),
        (
            lambda w: w.update({"final_layer.linear.bias": torch.zeros(3)}),
            r"final_layer.linear.bias is \[3\], not \[32\]",
        ),
    ],
)
def test_wrong_keys_are_one_line(change, message):
    system, entry = CASES[0]
    with pytest.raises(PolyditError, match=message) as caught:
        load_official(system, changed(read(system, entry, "weights"), change), **entry["config"])
    assert "\n" not in str(caught.value)


def test_unknown_system_and_argument_are_named():
    with pytest.raises(
        PolyditError, match=r"'pixart' is not known; choose one of .*dit, .*lightningdit, .*sit"
    ):
        load_official("pixart", {})
    with pytest.raises(PolyditError, match="no argument 'width'"):
        load_official("dit", {}, width=3)


@pytest.mark.parametrize(
    ("system", "family"), [("dit", "DiT"), ("sit", "SiT"), ("lightningdit", "LightningDiT")]
)
def test_what_is_left_out_is_as_in_the_official_constructors(system, family):
    options = {} if family != "LightningDiT" else {"norm": "layer", "mlp": "gelu_tanh", "position": "sincos"}
    with torch.device("meta"):
        published = make_dit(f"{family}-XL/2", **options)
        state = save_official(system, published)
        again = load_official(system, state, **({"input_size": 16} if family == "LightningDiT" else {}))
    assert again.state_dict().keys() == published.state_dict().keys()
    assert (again.config.num_heads, again.config.depth, again.config.hidden_size) == (16, 28, 1152)


def test_released_rotary_tables_are_rounded_as_they_are():
    model = make_dit("LightningDiT-S/1", input_size=13, depth=1, in_channels=4)
    table = save_official("lightningdit", model)["feat_rope.freqs_cos"]
    places = torch.arange(13) / 13 * 13  # as the released code counts
    assert (places != torch.arange(13)).any()
    width = 64 // 2
    frequencies = 1 / 10000 ** (torch.arange(0, width, 2)[: width // 2].float() / width)
    angles = (places[:, None] * frequencies).repeat_interleave(2, dim=1)
    expected = torch.cat([angles[:, None].expand(13, 13, -1), angles[None].expand(13, 13, -1)], -1).cos()
    torch.testing.assert_close(table, expected.flatten(0, 1), rtol=0, atol=1e-7)
