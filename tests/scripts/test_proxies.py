"""The small forms of the paper's rows that scripts/reproduce.py --proxy trains, their data and where they start."""

import importlib
import json

import keras
import numpy as np
import pytest

import mrcnn_tf
from tests.support.commands import ROOT, run_command
from tests.support.tiny import calm


def rows():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        tables = importlib.import_module("_paper_tables").TABLES.values()
    return {row.preset: table.data for table in tables for row in table.trained if table.data != "cityscapes"}


@pytest.mark.parametrize(("preset", "data"), rows().items())
def test_a_proxy_keeps_what_its_row_is_about(preset, data):
    proxy = importlib.import_module("_proxy")
    original = mrcnn_tf.preset(preset)
    _, dataset = proxy.data(data, 1, seed=0)
    small = proxy.proxy_config(original, dataset)
    assert small.backbone.features == original.backbone.features
    assert (small.roi.layer, small.roi.reduce) == (original.roi.layer, original.roi.reduce)
    assert small.branches == original.branches
    assert small.mask_head.activation == original.mask_head.activation
    assert small.mask_head.class_agnostic == original.mask_head.class_agnostic
    assert len(small.mask_head.fc) == len(original.mask_head.fc)
    assert len(small.mask_head.convs) == len(original.mask_head.convs)
    assert len(small.keypoint_head.convs) == len(original.keypoint_head.convs)
    assert small.backbone.norm == "frozen" and small.backbone.frozen_stages == original.backbone.frozen_stages
    assert small.mask_side == original.mask_side and small.class_names == dataset.class_names
    deeper = {"resnet50": 18, "resnet101": 34, "resnext101_64x4d": 50}[original.backbone.name]
    assert small.backbone.name == f"resnet{deeper}"


def test_training_and_held_out_images_are_of_other_seeds():
    proxy = importlib.import_module("_proxy")
    for kind in ("instances", "persons", "outlines"):
        train, held_out = proxy.data(kind, 2, seed=1)
        other, same = proxy.data(kind, 2, seed=2)
        assert len(train) == 2 and len(held_out) == proxy.HELD_OUT
        assert not np.array_equal(train.example(0).pixels, held_out.example(0).pixels)
        assert not np.array_equal(train.example(0).pixels, other.example(0).pixels)
        np.testing.assert_array_equal(held_out.example(3).pixels, same.example(3).pixels)


def test_kites_have_their_keypoints_where_they_are_drawn():
    kites = importlib.import_module("_proxy").Kites(12, seed=0)
    seen = hidden = whole = 0
    for index in range(12):
        example = kites.example(index)
        masks = mrcnn_tf.data.masks.full_masks(example)
        assert masks.shape == (len(example), 128, 128) and (example.areas == masks.sum(axis=(1, 2))).all()
        for mask, points, box in zip(masks, example.keypoints, example.boxes):
            head, left, right, tail = points[:, :2]
            # Seen from behind the head: y is down, so the left corner lies left of the way to the tail.
            way, across = tail - head, right - left
            assert way[0] * across[1] - way[1] * across[0] > 0
            covered = [
                mask[max(0, int(y) - 2) : int(y) + 3, max(0, int(x) - 2) : int(x) + 3].any() for y, x, _ in points
            ]
            assert (points[:, 2] == np.where(covered, 2, 1)).all()
            if (points[:, 2] == 2).all():
                assert box == pytest.approx([*points[:, :2].min(axis=0), *points[:, :2].max(axis=0)], abs=4)
                # Half the product of its diagonals, less what others hide and what its edges leave out.
                area = 0.5 * abs(way[0] * across[1] - way[1] * across[0])
                whole = max(whole, mask.sum() / area)
                assert mask.sum() < 1.3 * area
            seen, hidden = seen + sum(covered), hidden + 4 - sum(covered)
    assert seen > 3 * hidden > 0 and whole > 0.95
    np.testing.assert_array_equal(kites.example(5).pixels, kites.example(5).pixels)


def test_no_two_outlines_are_alike():
    """Masks of objects that lie free, each in 14 x 14 cells of its box: none is another's, nor its mirror image."""
    outlines = importlib.import_module("_drawn").Outlines(60, seed=0)
    crops = []
    for index in range(60):
        example = outlines.example(index)
        masks = mrcnn_tf.data.masks.full_masks(example)
        assert (example.areas == masks.sum(axis=(1, 2))).all() and (masks.sum(axis=0) <= 1).all()
        assert example.keypoints is None and (example.classes == 1).all()
        if len(example) == 1:
            assert (example.boxes > 0).all() and (example.boxes < 128).all()
            crops.append(mrcnn_tf.data.masks.mask_crops(example, 14)[0] > 127)
    assert len(crops) >= 10
    for number, one in enumerate(crops):
        for other in crops[:number]:
            for turned in (other, other[:, ::-1], other[::-1]):
                assert (one & turned).sum() / (one | turned).sum() < 0.95
    np.testing.assert_array_equal(outlines.example(5).pixels, outlines.example(-55).pixels)


def test_the_start_has_the_trained_backbone_and_heads_by_the_seed(tmp_path, monkeypatch):
    proxy = importlib.import_module("_proxy")
    trained = mrcnn_tf.MaskRCNN(mrcnn_tf.preset("shapes"))
    calm(trained)
    monkeypatch.setattr(proxy.mrcnn_tf, "load", lambda source: trained)
    _, dataset = proxy.data("instances", 1, 0)
    config = proxy.proxy_config(mrcnn_tf.preset("mask_rcnn_r50_c4"), dataset)
    models = []
    for number, seed in enumerate((0, 0, 1)):
        path = proxy.start_weights(config.replace(training__seed=seed), tmp_path, tmp_path / f"{number}.weights.h5")
        models.append(mrcnn_tf.MaskRCNN(config))
        mrcnn_tf.weights.load_weights(models[-1], path)
    same, again, other = ({weight.path: weight.numpy() for weight in model.weights} for model in models)
    for weight in trained.weights:
        if weight.path in same and weight.path.startswith(("stem", "res")):
            np.testing.assert_array_equal(same[weight.path], weight.numpy())
    for name in ("rpn/conv/kernel", "box_classes/kernel"):  # the pyramid's RPN does not fit the single map
        np.testing.assert_array_equal(same[name], again[name])
        assert np.abs(same[name] - other[name]).max() > 0
    assert any(path.startswith("res5") for path in same)  # the head of C4 is of the backbone


def test_cityscapes_has_few_wide_images_and_a_whole_model_for_coco(tmp_path, monkeypatch):
    proxy = importlib.import_module("_proxy")
    train_set, val_set = proxy.data("cityscapes", 1200, 3)
    assert len(train_set) == 40 and train_set.sizes[0].tolist() == val_set.sizes[0].tolist() == [96, 192]
    config = proxy.proxy_config(mrcnn_tf.preset("cityscapes_from_coco"), val_set)
    assert (config.input.shorter_edge, config.input.longer_edge) == ((96,), 192)

    def train(config, dataset, run_dir, **options):
        keras.utils.set_random_seed(len(dataset))
        run_dir.mkdir(parents=True, exist_ok=True)
        mrcnn_tf.MaskRCNN(config).save(run_dir / "model.keras")

    monkeypatch.setattr(proxy.mrcnn_tf, "train", train)
    path = proxy.start_from_coco(config, tmp_path, 2, tmp_path / "start.weights.h5")
    model = mrcnn_tf.MaskRCNN(config)
    mrcnn_tf.weights.load_weights(model, path)
    for weight, other in zip(model.weights, mrcnn_tf.load(tmp_path / "resnet18_2_whole").weights, strict=True):
        np.testing.assert_array_equal(weight.numpy(), other.numpy(), err_msg=weight.path)


@pytest.mark.slow
def test_a_proxy_is_really_trained(tmp_path, monkeypatch):
    proxy = importlib.import_module("_proxy")
    monkeypatch.setattr(proxy, "HELD_OUT", 4)
    small = ["input.shorter_edge=64", "roi.rois_per_image=8", "rpn.post_nms_test=10", "rpn.post_nms_train=20"]
    command = ["2d", "--proxy", "--rows", "roipool", "--seeds", 0, "--steps", 3, "--backbone-steps", 2]
    assert run_command("reproduce", *command, "--run-dir", tmp_path, "--keep", *small) == 0
    stored = json.loads((tmp_path / "2d" / "roipool" / "seed0" / "result.json").read_text())
    assert stored["steps"] == 3 and 0 <= stored["metrics"]["mask/AP75"] <= 1
    model = mrcnn_tf.load(tmp_path / "2d" / "roipool" / "seed0")
    assert (model.config.backbone.features, model.config.roi.layer) == ("c5", "pool")
    trained = mrcnn_tf.load(tmp_path / "backbones" / "resnet18_2_c5_rpn_1")
    assert trained.config.branches == () and trained.config.training.parts == ("rpn",)
    before = {weight.path: weight.numpy() for weight in trained.weights}
    after = {weight.path: weight.numpy() for weight in model.weights}
    np.testing.assert_array_equal(after["stem/kernel"], before["stem/kernel"])
    for name in ("res5_block1_conv1/kernel", "rpn/conv/kernel"):
        assert 0 < np.abs(after[name] - before[name]).max() < 0.1 * np.abs(before[name]).max(), name
    assert "table 2d" in (tmp_path / "2d.md").read_text().lower()
