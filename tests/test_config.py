"""Configurations: checks, changes by dotted names, JSON round trip, presets."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_tf import presets
from mrcnn_tf.config import Config, ConfigError


@pytest.mark.parametrize("name", presets.names() + presets.checkpoints())
def test_every_preset_survives_json(name):
    config = presets.preset(name)
    assert Config.from_json(config.to_json()) == config
    assert json.loads(config.to_json())["num_classes"] == config.num_classes
    assert presets.describe(name)


def test_defaults_are_the_papers():
    config = presets.preset("mask_rcnn_r50_fpn")
    assert (config.input.shorter_edge, config.roi.rois_per_image) == ((800,), 512)
    assert (config.training.learning_rate, config.training.steps) == (0.02, 160_000)
    assert (config.training.decay_steps, config.training.weight_decay) == ((120_000,), 1e-4)
    assert (config.rpn.positive_iou, config.rpn.negative_iou, config.rpn.anchors_per_image) == (0.7, 0.3, 256)
    assert config.mask_side == 28 and config.anchors.per_position == 3


def test_single_maps_have_the_papers_numbers():
    for name in ("mask_rcnn_r50_c4", "mask_rcnn_r101_c4"):
        config = presets.preset(name)
        assert (config.roi.rois_per_image, config.rpn.post_nms_test, config.anchors.per_position) == (64, 300, 15)
        # res5 on 7 x 7 with stride 1, masks of 14 x 14 right behind it (figure 3, left).
        assert (config.box_head.pool, config.box_head.res5_stride, config.box_head.fc) == (7, 1, ())
        assert (config.mask_head.pool, config.mask_head.convs, config.mask_side) == (7, (), 14)
    c5 = presets.preset("mask_rcnn_r50_c5")
    assert (c5.box_head, c5.mask_head) == (Config().box_head, Config().mask_head)
    fpn = presets.preset("mask_rcnn_r50_fpn")
    assert (fpn.rpn.post_nms_test, fpn.detections.max_per_image, fpn.detections.nms_iou) == (1000, 100, 0.5)


@pytest.mark.parametrize(
    ("name", "base", "change"),
    [
        ("softmax", "c4", {"mask_head": {"activation": "softmax"}}),
        ("agnostic", "c4", {"mask_head": {"class_agnostic": True}}),
        ("roipool", "c4", {"roi": {"layer": "pool", "reduce": "max"}}),
        ("roiwarp", "c4", {"roi": {"layer": "warp", "reduce": "mean"}}),
        ("roiwarp_max", "c4", {"roi": {"layer": "warp", "reduce": "max"}}),
        ("roialign_max", "c4", {"roi": {"layer": "align", "reduce": "max"}}),
        ("roipool", "c5", {"roi": {"layer": "pool", "reduce": "max"}}),
        ("roipool", "fpn", {"roi": {"layer": "pool", "reduce": "max"}}),
        ("mlp", "fpn", {"mask_head": {"fc": (1024, 1024)}}),
        ("mlp3", "fpn", {"mask_head": {"fc": (1024, 1024, 1024)}}),
    ],
)
def test_rows_of_table_2_differ_in_one_thing(name, base, change):
    base = presets.preset(f"mask_rcnn_r50_{base}")
    row = presets.preset(f"mask_rcnn_r50_{base.backbone.features}_{name}")
    assert row == base.replace(**change) != base


def test_row_of_table_3_with_the_pooling_of_before():
    base = presets.preset("faster_rcnn_r101_fpn")
    assert (
        presets.preset("faster_rcnn_r101_fpn_roipool") == base.replace(roi={"layer": "pool", "reduce": "max"}) != base
    )


def test_presets_of_persons_differ_in_their_branches():
    rows = {
        "keypoint_rcnn_r50_fpn": ("keypoints",),
        "keypoint_mask_rcnn_r50_fpn": ("mask", "keypoints"),
        "person_mask_rcnn_r50_fpn": ("mask",),
        "person_faster_rcnn_r50_fpn": (),
    }
    for name, branches in rows.items():
        config = presets.preset(name)
        assert config == presets.preset("keypoint_rcnn_r50_fpn", branches=branches)
        assert (config.class_names, config.input.shorter_edge[0], config.input.shorter_edge[-1]) == (
            ("person",),
            640,
            800,
        )
        training = config.training
        assert (training.steps, training.decay_steps, training.learning_rate) == (90_000, (60_000, 80_000), 0.02)
        assert (config.keypoint_head.convs, config.keypoint_head.side) == ((512,) * 8, 56)
    pool = presets.preset("keypoint_rcnn_r50_fpn_roipool")
    assert pool == presets.preset("keypoint_rcnn_r50_fpn", roi={"layer": "pool", "reduce": "max"})


def test_presets_of_public_checkpoints_know_cocos_classes():
    torchvision = presets.preset("torchvision/maskrcnn_resnet50_fpn")
    detectron2 = presets.preset("detectron2/mask_rcnn_R_50_FPN")
    assert len(torchvision.class_names) == 90 and len(set(detectron2.class_names)) == detectron2.num_classes == 80
    # Ids of COCO: 1 person, 13 stop sign (12 has no objects), 90 toothbrush.
    assert [torchvision.class_names[number - 1] for number in (1, 12, 13, 90)] == [
        "person",
        "N/A",
        "stop sign",
        "toothbrush",
    ]
    assert torchvision.class_names[84 - 1] == "book" and torchvision.class_names.count("N/A") == 10
    assert tuple(name for name in torchvision.class_names if name != "N/A") == detectron2.class_names
    # The same statistics, in the order in which each network takes the channels.
    assert torchvision.input.mean == detectron2.input.mean[::-1] == (123.675, 116.28, 103.53)


def test_replace_takes_sections_dotted_names_and_single_numbers():
    config = Config().replace(input={"shorter_edge": 256}, rpn__nms_iou=0.6, **{"training.steps": 10})
    assert config.input.shorter_edge == (256,)
    assert config.rpn.nms_iou == 0.6 and config.training.steps == 10
    assert config.input.longer_edge == 1333  # what was not named stays


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rpn.nms_io": 0.5}, ["rpn.nms_io", "did you mean 'nms_iou'"]),
        ({"rpm.nms_iou": 0.5}, ["rpm", "did you mean 'rpn'"]),
        ({"rpn.nms_iou": "much"}, ["rpn.nms_iou", "float"]),
        ({"rpn.nms_iou": 1.5}, ["RPNConfig.nms_iou", "(0, 1]"]),
        ({"training.steps": 2.5}, ["training.steps", "int"]),
        ({"training.steps": True}, ["training.steps", "int"]),
        ({"rpn": 3}, ["rpn", "section"]),
        ({"num_classes.x": 3}, ["num_classes", "no fields"]),
        ({"num_classes": 0}, ["num_classes", "at least one class"]),
        ({"class_names": ["a"], "num_classes": 2}, ["class_names", "2 names"]),
        ({"anchors.stride_rule": "map"}, ["stride_rule", "'image'"]),
        ({"detections.paste": "rounded"}, ["paste", "'torchvision'"]),
        ({"backbone.norm_epsilon": -1e-5}, ["norm_epsilon", "not negative"]),
        ({"backbone.name": "vgg"}, ["BackboneConfig.name", "resnet50"]),
        ({"input.mean": [1.0]}, ["mean", "one value per channel (3)"]),
        ({"anchors.sizes": [[32.0], [64.0]]}, ["sizes", "P2..P6"]),
        ({"box_head.delta_weights": [1.0, 2.0]}, ["delta_weights", "4 values"]),
        ({"keypoint_head.names": ["left_hand", "hand", "hand"]}, ["KeypointHeadConfig.names", "called differently"]),
        ({"training.decay_steps": [5, 3]}, ["decay_steps", "ascending"]),
        ({"data.crop": [64, 64, 64]}, ["DataConfig.crop = (64, 64, 64)", "height and width", "() for none"]),
        ({"data.crop": 0}, ["DataConfig.crop = (0,)", "positive pixels"]),
        ({"data.crop": [64, -32]}, ["DataConfig.crop", "positive pixels"]),
        ({"data.crop": 80}, ["DataConfig.crop = (80,)", "multiples of input.size_divisor, 32"]),
        ({"data.crop": "all"}, ["data.crop", "int"]),
    ],
)
def test_a_wrong_option_is_named_with_the_remedy(changes, words):
    with pytest.raises(ConfigError) as error:
        Config().replace(**changes)
    assert all(word in str(error.value) for word in words), error.value


def test_a_canvas_is_a_square_or_has_two_sides():
    assert Config().data.canvas is None
    assert Config().replace(data__crop=64).data.canvas == (64, 64)
    assert Config().replace(data__crop=(64, 96)).data.canvas == (64, 96)
    assert Config().replace(data__crop=96, input__size_divisor=96).data.canvas == (96, 96)


def test_configurations_of_before_load_without_a_canvas():
    values = Config().to_dict()
    del values["data"]["crop"]
    assert Config.from_dict(values) == Config()


@pytest.mark.parametrize(("epochs", "times"), [(100, 1), (200, 2), (400, 4)])
def test_presets_of_large_scale_jitter(epochs, times):
    config, deeper = (presets.preset(f"mask_rcnn_{name}_fpn_lsj_{epochs}ep") for name in ("r50", "r101"))
    assert deeper == config.replace(backbone__name="resnet101")
    assert (config.data.canvas, config.data.scale_jitter) == ((1024, 1024), (0.1, 2.0))
    training = config.training
    assert (training.steps, training.decay_steps) == (184_375 * times, (163_889 * times, 177_546 * times))
    # 64 images a step on eight devices, a hundred epochs of 118,000 images.
    assert training.images_per_device * 8 == training.reference_batch == 64
    assert training.steps * 64 // 118_000 == epochs
    norms = {config.backbone.norm, config.fpn.norm, config.box_head.norm, config.mask_head.norm}
    assert norms == {"sync_batch"} and config.backbone.frozen_stages == 0
    assert (config.rpn.convs, config.box_head.convs, config.box_head.fc) == (2, (256,) * 4, (1024,))
    assert (config.input.shorter_edge, config.input.longer_edge) == ((800,), 1333)


def test_json_that_is_none():
    with pytest.raises(ConfigError, match="not valid json"):
        Config.from_json("{")
    with pytest.raises(ConfigError, match="dictionary"):
        Config.from_json("[1]")


def test_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'nucleus'"):
        presets.preset("nucleis")
    with pytest.raises(ConfigError, match="mask_rcnn_r50_fpn"):
        presets.preset("zzz")


def test_another_number_of_steps_keeps_the_shares_of_the_schedule():
    training = presets.preset("nucleus").with_steps(40).training
    assert (training.steps, training.warmup_steps, training.decay_steps) == (40, 10, (32,))
    assert presets.preset("nucleus").with_steps(400) == presets.preset("nucleus")


def test_another_class_count_drops_the_presets_names():
    assert presets.preset("shapes", num_classes=5).class_names == ()
    assert presets.preset("shapes").class_names == ("circle", "square", "triangle")


@settings(deadline=None)  # the first example pays for what is built once
@given(
    st.floats(1e-6, 10),
    st.integers(1, 10**7),
    st.lists(st.integers(1, 4000), min_size=1, max_size=4),
    st.booleans(),
)
def test_any_values_survive_json(rate, steps, edges, flip):
    config = Config().replace(
        training={"learning_rate": rate, "steps": steps},
        input={"shorter_edge": edges, "longer_edge": 4000},
        data__flip=flip,
    )
    assert Config.from_json(config.to_json()) == config


def test_presets_of_checkpoints_have_their_networks_forms():
    known = presets.checkpoints()
    detectron2 = [name for name in known if name.startswith("detectron2/")]
    assert len(detectron2) == 7 + 7 + 3 and len([name for name in known if name.startswith("torchvision/")]) == 5
    for name in detectron2:
        config = presets.preset(name)
        features = name.rsplit("_", 1)[1].lower()
        assert config.backbone.features == features
        assert config.backbone.stride_in == ("3x3" if "X_101" in name else "1x1")
        assert config.input.std == ((57.375, 57.12, 58.395) if "X_101" in name else (1.0, 1.0, 1.0))
        assert (config.input.size_divisor, config.anchors.per_position) == ((32, 3) if features == "fpn" else (1, 15))
        branch = name.split("/")[1].split("_")[0]
        assert config.branches == {"mask": ("mask",), "faster": (), "keypoint": ("keypoints",)}[branch]
        assert config.num_classes == (1 if branch == "keypoint" else 80)
        assert config.rpn.post_nms_train == (2000 if features != "fpn" else 1500 if branch == "keypoint" else 1000)
        assert (config.rpn.channels, config.rpn.pre_nms_test) == {
            "fpn": (256, 1000),
            "c4": (1024, 6000),
            "dc5": (2048, 6000),
        }[features]
    c4, dc5 = (presets.preset(f"detectron2/mask_rcnn_R_101_{features}") for features in ("C4", "DC5"))
    assert (c4.box_head.pool, c4.box_head.res5_stride, c4.mask_head.convs, c4.mask_side) == (14, 2, (), 14)
    assert (dc5.box_head.pool, dc5.box_head.fc, dc5.mask_head.convs, dc5.mask_side) == (7, (1024,) * 2, (256,) * 4, 28)
    second = presets.preset("torchvision/maskrcnn_resnet50_fpn_v2")
    assert (second.backbone.norm, second.fpn.norm, second.box_head.norm, second.mask_head.norm) == ("batch",) * 4
    assert (second.rpn.convs, second.box_head.convs, second.box_head.fc) == (2, (256,) * 4, (1024,))
    assert second.roi.half_pixel is False and second.backbone.norm_epsilon == 1e-5


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"fpn": {"norm": "group", "channels": 48}}, "FPNConfig.channels"),
        ({"mask_head": {"norm": "group", "convs": (64, 40)}}, "MaskHeadConfig.convs"),
        ({"backbone": {"features": "c4"}}, "AnchorConfig.sizes"),
        ({"anchors": {"sizes": ((32,),)}}, "AnchorConfig.sizes"),
        ({"input": {"size_divisor": 16}}, "InputConfig.size_divisor"),
        ({"branches": ("mask", "mask")}, "Config.branches"),
        ({"branches": ("boxes",)}, "Config.branches"),
        ({"mask_head": {"activation": "softmax", "class_agnostic": True}}, "MaskHeadConfig.class_agnostic"),
        (
            {"backbone": {"features": "dc5", "name": "resnet18"}, "anchors": {"sizes": ((32,),)}},
            "BackboneConfig.features",
        ),
    ],
)
def test_stages_that_do_not_go_together_are_refused(changes, field):
    with pytest.raises(ConfigError, match=field.replace(".", r"\.")):
        Config().replace(**changes)


def test_the_side_of_masks_follows_from_the_features():
    assert Config().mask_side == 28
    assert presets.preset("mask_rcnn_r50_c4").mask_side == 14
    assert presets.preset("detectron2/mask_rcnn_R_50_C4").mask_side == 14
    assert presets.preset("mask_rcnn_r50_c5").mask_side == 28
