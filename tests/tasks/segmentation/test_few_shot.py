"""Few-shot segmentation: the exact facts of the mechanism, the pipeline, the command line, bad input."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from few_shot_fixtures import marked, tiny_dit, tiny_pipeline

from polydit.core.cli import main
from polydit.core.conditioning import KeyValueBank
from polydit.core.diffusion import Objective
from polydit.core.errors import PolyditError
from polydit.core.load import load
from polydit.core.metrics import FewShotIoU
from polydit.tasks.segmentation.few_shot.composed import drawn_episodes
from polydit.tasks.segmentation.few_shot.episodes import EpisodeSet
from polydit.tasks.segmentation.few_shot.evaluate import evaluate
from polydit.tasks.segmentation.few_shot.formulation import Formulation
from polydit.tasks.segmentation.few_shot.model import FewShotSegmentation
from polydit.tasks.segmentation.few_shot.pipeline import FewShotPipeline
from polydit.tasks.segmentation.few_shot.supports import classes_in, paired, read_mask
from polydit.tasks.segmentation.predict import Segmented, keep_piece_of


@pytest.fixture
def query():
    return torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def supports():
    """Three pictures and where the thing is in them."""
    pictures = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1
    masks = torch.zeros(3, 1, 16, 16)
    for i in range(3):
        masks[i, :, 2 + i : 10 + i, 3:12] = 1
    return pictures, masks


def soft(pipe, query, pictures, masks):
    return pipe(query, pictures, masks, output_type="pt", detail="none").alpha[0]


# -- the mechanism -------------------------------------------------------------------------------------------


def test_without_supports_it_is_the_plain_network(query):
    pipe = tiny_pipeline()
    with torch.no_grad():
        raw = pipe.transformer(query, torch.ones(1)).sample
    expected = ((-raw).mean(1, keepdim=True) + 1).div(2).clamp(0, 1)[0]
    assert torch.equal(soft(pipe, query, [], []), expected)


def test_the_order_of_supports_does_not_matter(query, supports):
    pipe = tiny_pipeline()
    pictures, masks = supports
    found = soft(pipe, query, pictures, masks)
    torch.testing.assert_close(
        soft(pipe, query, pictures[[2, 0, 1]], masks[[2, 0, 1]]), found, rtol=0, atol=1e-5
    )
    assert (soft(pipe, query, pictures[:1], masks[:1]) - found).abs().max() > 1e-3
    twice = soft(pipe, query, pictures[[0, 0, 1, 2]], masks[[0, 0, 1, 2]])
    assert (twice - found).abs().max() > 1e-4, "a support shown twice has twice the weight"


def test_the_mask_of_a_support_matters(query, supports):
    pipe = tiny_pipeline()
    pictures, masks = supports
    found = soft(pipe, query, pictures, masks)
    assert (soft(pipe, query, pictures, 1 - masks) - found).abs().max() > 1e-2
    form = pipe.formulation
    masks = masks.clone().requires_grad_()
    bank = KeyValueBank(pipe.transformer)
    references = form.encode_supports(pictures[None], masks[None], pipe.space)
    form.show(pipe.transformer, bank, references, 3, None)
    form.ask(pipe.transformer, bank, query, None).sum().backward()
    assert masks.grad.flatten(1).abs().amax(1).min() > 0, "each support's mask has its say"


def test_supports_of_one_batch_equal_supports_shown_one_by_one(query, supports):
    """Training writes (B * shots) at once, the pipeline each support by itself."""
    pipe = tiny_pipeline()
    form, bank = pipe.formulation, KeyValueBank(pipe.transformer)
    pictures, masks = supports
    with torch.no_grad():
        form.show(
            pipe.transformer, bank, form.encode_supports(pictures[None], masks[None], pipe.space), 3, None
        )
        raw = form.ask(pipe.transformer, bank, query, None)
    found = form.decode_mask(-raw, pipe.space)[0]
    torch.testing.assert_close(found, soft(pipe, query, pictures, masks), rtol=0, atol=1e-5)


def test_one_step_at_alpha_zero_is_minus_the_answer(query):
    """The query stands where the noise would be: nothing of it is in the target."""
    objective = Objective(prediction="v")
    mask, noise, t = torch.randn(1, 3, 16, 16), query, torch.ones(1)
    assert torch.equal(objective.path.add_noise(mask, noise, t), noise)
    assert torch.equal(objective.target(mask, noise, t), -mask)
    assert torch.equal(objective.x0(-mask, noise, t), mask)


# -- the module ----------------------------------------------------------------------------------------------


def batch(count=2, shots=2):
    g = torch.Generator().manual_seed(3)
    return {
        "query": torch.rand(count, 3, 16, 16, generator=g) * 2 - 1,
        "query_mask": (torch.rand(count, 1, 16, 16, generator=g) > 0.5).float(),
        "support": torch.rand(count, shots, 3, 16, 16, generator=g) * 2 - 1,
        "support_mask": (torch.rand(count, shots, 1, 16, 16, generator=g) > 0.5).float(),
        "label": torch.zeros(count, dtype=torch.long),
    }


def test_training_and_pipeline_say_the_same():
    module = FewShotSegmentation(
        tiny_dit(), formulation=Formulation(size=16, threshold=0.5, relative=False)
    ).eval()
    given = batch()
    terms, output = module.losses(given)
    pipe = module.build_pipeline()
    for row in range(2):
        found = soft(pipe, given["query"][row : row + 1], given["support"][row], given["support_mask"][row])
        expected = module.formulation.decode_mask(output.x0[row : row + 1], module.space)[0]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    truth = (given["query_mask"] * 2 - 1).expand(-1, 3, -1, -1)
    torch.testing.assert_close(terms["objective"], (output.x0 - truth).square().mean())


def test_gradients_reach_everything_through_the_bank():
    module = FewShotSegmentation(tiny_dit(), overlap_weight=0.5)
    terms, _ = module.losses(batch())
    sum(terms.values()).backward()
    assert set(terms) == {"objective", "overlap"}
    without = [n for n, p in module.backbone.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
    hidden = FewShotSegmentation(tiny_dit(), hide_supports=True)
    sum(hidden.losses(batch())[0].values()).backward()
    assert hidden.backbone.reference_embed.proj.weight.grad is None


def test_groups_are_batches_and_pixels_that_do_not_count_do_not():
    module = FewShotSegmentation(tiny_dit()).eval()
    flat = batch(4)
    grouped = {name: value.unflatten(0, (2, 2)) for name, value in flat.items()}
    torch.testing.assert_close(module.losses(grouped)[1].loss, module.losses(flat)[1].loss)
    assert module.batch_samples == 4
    module.losses(grouped)
    assert module.batch_samples == 2, "the data set's samples are groups"
    counted = torch.ones(4, 1, 16, 16)
    counted[..., :8, :] = 0
    other = {**flat, "query_mask": flat["query_mask"].clone(), "counted": counted}
    before = module.losses(other)[1].loss
    other["query_mask"][..., :8, :] = 1 - other["query_mask"][..., :8, :]
    torch.testing.assert_close(module.losses(other)[1].loss, before)


def test_another_prediction_is_refused():
    with pytest.raises(PolyditError, match="predicted as v"):
        FewShotSegmentation(tiny_dit(), Objective(prediction="velocity"))


# -- metrics -------------------------------------------------------------------------------------------------


def test_mean_iou_accumulates_by_class():
    metric = FewShotIoU(3)
    truth = torch.zeros(3, 1, 4, 4, dtype=torch.bool)
    truth[:, :, :2] = True  # 8 pixels each
    found = truth.clone()
    found[0, 0, 0] = False  # 4 of 8
    found[1, 0, 2] = True  # 8 of 12
    metric.update(found, truth, torch.tensor([0, 0, 2]))
    figures = metric.compute()
    per_class = metric.per_class()
    assert per_class[0] == pytest.approx((4 + 8) / (8 + 12))
    assert per_class[1].isnan()
    assert per_class[2] == 1
    assert figures["miou"] == pytest.approx((0.6 + 1) / 2)
    background = (8 + 4 + 8) / (12 + 8 + 8)
    assert figures["fb_iou"] == pytest.approx(((4 + 8 + 8) / (8 + 12 + 8) + background) / 2)
    counted = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    counted[0, 0, 0] = False
    metric.reset()
    metric.update(found[:1], truth[:1], torch.tensor([1]), counted)
    assert metric.compute()["miou"] == 1, "the row that differs does not count"


# -- pipeline ------------------------------------------------------------------------------------------------


def test_pictures_of_any_kind_and_size(tmp_path):
    pipe = tiny_pipeline()
    file, mask = marked(tmp_path, "a")
    other = tmp_path / "b.png"
    Image.new("RGB", (70, 33), (90, 10, 30)).save(other)
    found = pipe([file, other], [file], [mask])
    assert [picture.size for picture in found.alpha] == [(40, 30), (70, 33)]
    array = np.array(Image.open(file))
    again = pipe(array, [array], [np.array(Image.open(mask)) > 0], output_type="np")
    assert again.masks[0].dtype == bool
    np.testing.assert_array_equal(np.rint(again.alpha[0] * 255).astype(np.uint8), np.array(found.alpha[0]))


def test_masks_of_every_kind_say_the_same(tmp_path):
    pipe = tiny_pipeline()
    file, mask = marked(tmp_path, "a")
    inside = np.asarray(Image.open(mask)) > 127
    low = np.where(inside, 65535, 6000).astype(np.uint16)  # the ground is nearly black, and above 255
    kinds = {
        "bytes": inside.astype(np.uint8) * 255,
        "bytes of 0 and 1": inside.astype(np.uint8),
        "integers": inside.astype(np.int64),
        "floats": inside.astype(np.float32),
        "16 bits": low,
        "16-bit picture": Image.fromarray(low),
        "tensor": torch.from_numpy(inside)[None],
        "tensor of bytes": torch.from_numpy(inside.astype(np.uint8) * 255)[None],
    }
    expected = pipe(file, [file], [inside], output_type="np").alpha[0]
    for name, kind in kinds.items():
        found = pipe(file, [file], [kind], output_type="np").alpha[0]
        np.testing.assert_array_equal(found, expected, err_msg=name)
    for alone in ((str(file), str(mask)), (file, mask), (Image.open(file), Image.open(mask))):
        np.testing.assert_array_equal(pipe(file, *alone, output_type="np").alpha[0], expected)
    for bad in (inside[..., None].repeat(3, -1), torch.zeros(3, 30, 40)):
        with pytest.raises(PolyditError, match=r"give \(H, W\)"):
            pipe(file, [file], [bad])
    for threshold in (7, -0.1):
        with pytest.raises(PolyditError, match="must lie between 0 and 1"):
            pipe(file, [file], [mask], threshold=threshold)
        with pytest.raises(PolyditError, match="must lie between 0 and 1"):
            pipe.ways(file, {"a": ([file], [mask])}, threshold=threshold)


def test_files_of_masks_are_read_by_what_they_show(tmp_path):
    _, mask = marked(tmp_path, "a")
    grey = Image.open(mask).convert("L")
    inside = np.asarray(grey) >= 128
    Image.fromarray(np.where(inside, 65535, 6000).astype(np.uint16)).save(tmp_path / "deep.png")
    assert np.array_equal(read_mask(tmp_path / "deep.png"), inside)
    numbers = Image.fromarray(np.where(inside, 1, 0).astype(np.uint8), "L").convert("P")
    numbers.putpalette([255, 255, 255, 10, 10, 10])  # by its colours it would be the other way round
    numbers.save(tmp_path / "palette.png", transparency=0)
    assert np.array_equal(read_mask(tmp_path / "palette.png"), inside)
    assert paired([tmp_path / "palette.png"], []) == [(tmp_path / "palette.png",) * 2]
    turned = Image.Exif()
    turned[0x0112] = 6
    grey.rotate(90, expand=True).save(tmp_path / "turned.png", exif=turned)
    assert np.array_equal(read_mask(tmp_path / "turned.png"), inside)


def test_folders_of_cut_outs_need_no_masks_and_empty_ones_are_no_classes(tmp_path):
    (tmp_path / "things" / "mug").mkdir(parents=True)
    (tmp_path / "things" / "none").mkdir()
    cut = tmp_path / "things" / "mug" / "one.png"
    Image.new("RGBA", (8, 8)).save(cut)
    assert paired([cut.parent], []) == [(cut, cut)]
    assert classes_in(tmp_path / "things") == {"mug": [(cut, cut)]}


def test_several_ways_are_each_pixels_surest_class(tmp_path):
    pipe = tiny_pipeline()
    shown = {
        name: tuple([file] for file in marked(tmp_path, name, spot=spot))
        for name, spot in (("x", 0), ("y", 9))
    }
    picture = Image.open(shown["x"][0][0]).convert("RGB")
    found = pipe.ways(picture, shown)
    assert found.names == ["x", "y"]
    separate = [pipe(picture, *parts, output_type="np") for parts in shown.values()]
    alpha = np.stack([one.alpha[0] for one in separate])
    np.testing.assert_allclose(found.alpha[0], alpha, atol=1e-6)
    claimed = np.stack([one.masks[0] for one in separate])
    expected = np.where(claimed.any(0), np.where(claimed, alpha, -1).argmax(0) + 1, 0)
    np.testing.assert_array_equal(found.labels[0], expected)
    with pytest.raises(PolyditError, match="0 classes"):
        pipe.ways(picture, {})


def test_a_tiny_thing_is_not_lost_when_the_mask_is_reduced():
    pipe = tiny_pipeline()
    mask = torch.zeros(1, 1, 400, 400)
    mask[..., 201, 199] = 1
    assert pipe._squared_mask(mask).sum() >= 1


def test_the_relative_threshold_is_of_the_greatest_value():
    form = Formulation(threshold=0.25, relative=True)
    found = torch.tensor([0.0, 0.1, 0.11, 0.4]).view(1, 1, 2, 2)
    assert form.cut(found).flatten().tolist() == [False, False, True, True]
    assert form.cut(found, 0.5).flatten().tolist() == [False, False, False, True]
    assert Formulation(relative=False, threshold=0.3).cut(found).sum() == 1


def test_saved_and_loaded_it_says_the_same(tmp_path, query, supports):
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path / "weights")
    again = load(tmp_path / "weights", task="segmentation")
    assert isinstance(again, FewShotPipeline)
    assert again.formulation == pipe.formulation
    torch.testing.assert_close(soft(again, query, *supports), soft(pipe, query, *supports), rtol=0, atol=1e-6)


# -- the command ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("few_shot") / "weights"
    tiny_pipeline().save_pretrained(folder)
    return folder


def predict(weights, folder, *words):
    command = ["segmentation", "predict", "--weights", weights, "--output", folder / "out", *words]
    return main([str(word) for word in command])


def test_predict_applies_supports_to_a_folder(weights, tmp_path):
    shots = tmp_path / "shots"
    shots.mkdir()
    files = [marked(shots, name, spot=spot) for name, spot in (("one", 0), ("two", 7))]
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("p", "q"):
        Image.fromarray(np.full((20, 26, 3), 120, np.uint8)).save(photos / f"{name}.png")
    listed = ["--support", *(f[0] for f in files), "--support-mask", *(f[1] for f in files)]
    assert predict(weights, tmp_path, "--input", photos, *listed) == 0
    out = tmp_path / "out"
    assert sorted(p.name for p in out.glob("p_*")) == ["p_alpha.png", "p_cutout.png", "p_mask.png"]
    first = json.loads((out / "results.json").read_text())["inputs"][0]
    assert first["shots"] == 2
    assert Image.open(out / "q_mask.png").size == (26, 20)
    kept = (out / "p_alpha.png").read_bytes()
    folders = ["--support", shots, "--support-mask", shots / "masks", "--overwrite"]
    assert predict(weights, tmp_path, "--input", photos, *folders) == 0
    assert (out / "p_alpha.png").read_bytes() == kept, "folders are paired by name"
    cut = []
    for picture, mask in files:  # white where nothing is: transparent pixels are shown over white
        cut.append(tmp_path / f"{picture.stem}_cut.png")
        both = Image.open(picture).convert("RGB")
        both.putalpha(Image.open(mask).convert("L").point(lambda v: 255 * (v >= 128)))
        both.save(cut[-1])
    assert predict(weights, tmp_path, "--input", photos, "--support", *cut, "--overwrite") == 0
    assert json.loads((out / "results.json").read_text())["inputs"][0]["shots"] == 2


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("none", "--support: few-shot weights need pictures"),
        ("no masks", "--support-mask: the supports need masks"),
        ("one mask", "2 supports and 1 masks; give one for each"),
        ("other size", "is 40x30 and its mask 12x12; they must have the same size"),
        ("empty", "its mask is empty, so it shows nothing"),
        ("missing", "nowhere.png: no such file"),
        ("lonely", "has no mask in"),
        ("folder and file", "is a folder, so give the folder of its masks"),
        ("damaged", "a_mask.png: not a picture that can be read"),
        ("damaged support", "a.png: not a picture that can be read"),
        ("no support", "--support nowhere.png: no such file or folder"),
    ],
)
def test_supports_that_cannot_be_used_are_one_line(case, message, weights, tmp_path, capsys):
    file, mask = marked(tmp_path, "a")
    other, other_mask = marked(tmp_path, "b", spot=3)
    words = {
        "none": [],
        "no masks": ["--support", file],
        "damaged support": ["--support", file],
        "no support": ["--support", "nowhere.png"],
        "one mask": ["--support", file, other, "--support-mask", mask],
        "missing": ["--support", file, "--support-mask", tmp_path / "nowhere.png"],
        "folder and file": ["--support", tmp_path, "--support-mask", mask],
        "lonely": ["--support", tmp_path, "--support-mask", tmp_path / "masks"],
    }.get(case, ["--support", file, "--support-mask", mask])
    if case == "other size":
        Image.new("L", (12, 12), 255).save(mask)
    elif case == "empty":
        Image.new("L", (40, 30)).save(mask)
    elif case == "damaged":
        mask.write_bytes(b"nonsense")
    elif case == "lonely":
        other_mask.unlink()
    elif case == "damaged support":
        file.write_bytes(b"nonsense")
    assert predict(weights, tmp_path, "--input", other, *words) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1
    assert not list((tmp_path / "out").glob("*_mask.png")) if (tmp_path / "out").is_dir() else True


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--box", "1,2,3,4"], "--box: FewShotPipeline does not use it, it is for all but few-shot weights"),
        (["--min-max"], "--min-max: FewShotPipeline does not use it"),
        (
            ["--looks", "6"],
            "--looks: FewShotPipeline does not use it, it is for DiffDIS and the small weights",
        ),
        (["--edges"], "--edges: FewShotPipeline does not use it"),
        (["--detail-side", "512"], "--detail-side: FewShotPipeline does not use it"),
        (
            ["--detail", "tiles"],
            "--detail tiles: FewShotPipeline sees no tiles, they are for DiffDIS and the small",
        ),
        (["--depth", "/nonexistent"], "--depth: FewShotPipeline does not use it, it is for PDFNet's weights"),
        (["--steps", "3"], "--steps 3: masks are predicted in one step"),
    ],
)
def test_options_of_other_systems_are_refused(words, message, weights, tmp_path, capsys):
    file, mask = marked(tmp_path, "a")
    listed = ["--input", file, "--support", file, "--support-mask", mask]
    assert predict(weights, tmp_path, *listed, *words) == 2
    assert message in capsys.readouterr().err


def test_several_classes_from_folders(weights, tmp_path, capsys):
    shots, classes = tmp_path / "shots", {}
    for name, spot in (("mug", 0), ("pen", 7)):
        (shots / name).mkdir(parents=True)
        picture, mask = marked(tmp_path, name, spot=spot)
        picture = picture.rename(shots / name / "one.png")
        mask = mask.rename(shots / name / "one_mask.png")
        classes[name] = ([picture], [mask])
    Image.fromarray(np.full((20, 26, 3), 120, np.uint8)).save(tmp_path / "p.png")
    words = ["--input", tmp_path / "p.png", "--support-classes", shots, "--threshold", 0.4]
    assert predict(weights, tmp_path, *words) == 0
    out = tmp_path / "out"
    names = ["alpha", "classes", "cutout", "mask", "mug_alpha", "pen_alpha"]
    assert sorted(path.name for path in out.glob("p_*")) == [f"p_{name}.png" for name in names]
    expected = FewShotPipeline.from_pretrained(weights).ways(tmp_path / "p.png", classes, 0.4)
    labels = np.asarray(Image.open(out / "p_classes.png"))
    assert np.array_equal(labels, expected.labels[0])
    assert np.array_equal(np.asarray(Image.open(out / "p_mask.png")) > 0, labels > 0)
    soft = np.asarray(Image.open(out / "p_pen_alpha.png"))
    assert np.array_equal(soft, np.rint(expected.alpha[0][1] * 255))
    record = json.loads((out / "results.json").read_text())["inputs"][0]
    assert record["shots"] == {"mug": 1, "pen": 1}
    assert record["classes"]["pen"] == {"label": 2, "share": round(float((labels == 2).mean()), 4)}
    (shots / "pen" / "one_mask.png").unlink()
    (tmp_path / "none").mkdir()
    for folder, message in (
        (shots, "one.png: has no mask in"),
        (tmp_path / "none", "holds no folder of pictures; make one for each class"),
        (tmp_path / "gone", "no such folder; give one with a folder for each class"),
    ):
        assert predict(weights, tmp_path, *words[:3], folder, "--overwrite") == 2
        assert message in capsys.readouterr().err
    assert predict(weights, tmp_path, *words, "--support", tmp_path / "p.png", "--overwrite") == 2
    assert "--support-classes: brings its own supports" in capsys.readouterr().err


def test_a_point_keeps_its_piece_of_every_class():
    alpha = np.zeros((20, 30), np.float32)
    alpha[4:8, 4:8] = alpha[10:18, 20:28] = 1
    labels = np.where(alpha > 0, 1, 0).astype(np.uint8)
    labels[10:18, 20:28] = 2
    found = Segmented(
        alpha,
        pictures={"classes": labels, "pen_alpha": (alpha * 200).astype(np.uint8)},
        record={"classes": {"mug": {"label": 1, "share": 16 / 600}, "pen": {"label": 2, "share": 64 / 600}}},
    )
    keep_piece_of(found, 5, 5)
    assert np.array_equal(found.pictures["classes"], np.where(alpha * (labels == 1) > 0, 1, 0))
    assert (found.pictures["pen_alpha"] > 0).sum() == (found.alpha > 0).sum() == 16
    assert [entry["share"] for entry in found.record["classes"].values()] == [round(16 / 600, 4), 0]


def test_classes_are_refused_for_a_video(weights, tmp_path, capsys):
    (tmp_path / "clip.mp4").write_bytes(b"")
    words = ["--input", tmp_path / "clip.mp4", "--support-classes", tmp_path]
    assert predict(weights, tmp_path, *words) == 2
    assert "clip.mp4: of a video only masks are written, without --support-classes" in capsys.readouterr().err


@pytest.mark.parametrize(("relative", "given"), [(True, 0.6), (True, None), (False, 0.6), (False, None)])
def test_a_threshold_that_is_given_wins_over_that_of_the_weights(tmp_path, relative, given):
    form = Formulation(size=16, threshold=0.25, relative=relative)
    pipe = FewShotPipeline(tiny_dit(), formulation=form.config())
    pipe.save_pretrained(tmp_path / "weights")
    file, mask = marked(tmp_path, "a")
    words = ["--input", file, "--support", file, "--support-mask", mask]
    words += [] if given is None else ["--threshold", given]
    assert predict(tmp_path / "weights", tmp_path, *words) == 0
    expected = pipe(file, [file], [mask], threshold=given, output_type="np").masks[0]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "a_mask.png")) > 0, expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_a_cut_out_is_the_same_by_path_and_as_a_picture(tmp_path, mode):
    file, mask = marked(tmp_path, "a")
    cutout = Image.open(file).convert("RGB")
    cutout.putalpha(Image.open(mask).convert("L"))
    cutout.convert(mode).save(tmp_path / "cut.png")
    path, pipe = tmp_path / "cut.png", tiny_pipeline()
    with Image.open(path) as opened:
        opened.load()
        mask_of = {"P": mask}.get(mode)
        found = [
            pipe(given, [given], [mask_of or given], output_type="np").alpha[0] for given in (path, opened)
        ]
    np.testing.assert_array_equal(*found)


def test_weights_of_another_system_are_told(tmp_path, capsys, weights):
    assert (
        main(
            [
                "segmentation",
                "evaluate-few-shot",
                "--layout",
                "drawn",
                "--episodes",
                "2",
                "--weights",
                str(tmp_path),
            ]
        )
        == 2
    )
    assert "no model_index.json" in capsys.readouterr().err
    assert main(
        ["super-resolution", "predict", "--weights", str(weights), "--input", str(tmp_path), "--output", "o"]
    )
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_evaluation_compares_the_ways(weights, tmp_path, capsys):
    words = [
        "--layout",
        "drawn",
        "--episodes",
        "3",
        "--weights",
        str(weights),
        "--output",
        str(tmp_path / "e.json"),
    ]
    assert main(["segmentation", "evaluate-few-shot", *words]) == 0
    assert "mIoU gained by the supports" in capsys.readouterr().out
    record = json.loads((tmp_path / "e.json").read_text())
    assert record["mean"]["miou with supports"] == record["figures"]["with supports"]["miou"]
    assert set(record["figures"]) == {
        "with supports", "without supports", "supports' masks inverted", "colours of the supports",
    }  # fmt: skip


def test_pairs_of_files_and_folders(tmp_path):
    file, mask = marked(tmp_path, "a")
    assert paired([tmp_path], [tmp_path / "masks"]) == [(file, mask)]
    assert paired([file], [mask]) == [(file, mask)]
    mask = mask.rename(tmp_path / "masks" / "a.png")
    assert paired([tmp_path], [tmp_path / "masks"]) == [(file, mask)], "no mask is a support"
    with pytest.raises(PolyditError, match="a folder beside files"):
        paired([file, tmp_path], [mask, mask])


def test_the_shipped_weights_find_what_the_support_marks(root):
    """Two drawn things on soft colours, of which the support shows one; the weights were trained on cut-outs."""
    folder = root / "demos" / "weights" / "segmentation_few_shot"
    pipe = load(folder, task="segmentation")
    episodes = EpisodeSet(drawn_episodes("val"), 8, shots=1, size=128, seed=3)
    result = evaluate(pipe, episodes)
    assert result.figures["with supports"]["miou"] > result.figures["without supports"]["miou"] + 0.1
    assert result.figures["with supports"]["miou"] > result.figures["supports' masks inverted"]["miou"] + 0.1
