"""The table of public checkpoints."""

import re

import keras.src.applications.resnet as keras_resnet
import pytest

from mrcnn_tf import presets
from mrcnn_tf.weights import zoo
from mrcnn_tf.weights.report import WeightsError
from tests.support.commands import ROOT

WHOLE = [one for one in zoo.checkpoints() if one.dataset == "coco"]
BACKBONES = [one for one in zoo.checkpoints() if one.dataset == "imagenet"]


def test_names_and_files_are_unique():
    whole = zoo.names()[: len(WHOLE)]
    assert len(set(zoo.names())) == len(zoo.names()) and len(set(whole)) == len(whole)
    files = [one.file_name for one in zoo.checkpoints()]
    assert len(set(files)) == len(files)
    for one in zoo.checkpoints():
        assert zoo.by_name(one.name) is one and zoo.by_file(f"/somewhere/{one.file_name}") is one
    assert zoo.by_name("torchvision/alexnet") is None and zoo.by_file("model.pth") is None


def test_every_source_preset_has_weights_and_every_whole_model_a_preset():
    assert {one.preset for one in WHOLE} == set(presets.checkpoints())
    for one in WHOLE:
        config = presets.preset(one.preset)
        assert config.backbone.name == one.backbone
        assert set(one.ap) == ({"box", *config.branches} if one.ap else set())


@pytest.mark.parametrize("one", WHOLE + BACKBONES, ids=lambda one: one.name)
def test_hashes_are_what_the_publisher_tells(one):
    stem = one.file_name.rsplit(".", 1)[0]
    digits = re.split("[-_]", stem)[-1]
    if one.source == "torchvision":
        assert one.check == f"sha256:{digits}" and re.fullmatch("[0-9a-f]{8}", digits)
        assert one.url.startswith("https://download.pytorch.org/models/")
    elif one.source == "detectron2" and one.preset:
        assert one.check == f"md5:{digits}" and re.fullmatch("[0-9a-f]{6}", digits)
        assert re.search(r"/detectron2/COCO-\w+/\w+_[13]x/\d{9}/model_final_[0-9a-f]{6}\.pkl$", one.url)
    elif one.source == "keras":
        assert one.url.startswith(keras_resnet.BASE_WEIGHTS_PATH)
        assert one.check == f"md5:{keras_resnet.WEIGHTS_HASHES[one.backbone][1]}"  # the second is without top
    else:
        assert one.check == ""


def test_the_addresses_of_some():
    found = {one.name: one.url for one in zoo.checkpoints()}
    assert found["detectron2/mask_rcnn_R_50_FPN_3x"] == (
        "https://dl.fbaipublicfiles.com/detectron2/COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x/137849600/"
        "model_final_f10217.pkl"
    )
    assert found["torchvision/maskrcnn_resnet50_fpn"] == (
        "https://download.pytorch.org/models/maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth"
    )
    assert found["torchvision/resnet50_v2"] == "https://download.pytorch.org/models/resnet50-11ad3fa6.pth"
    assert found["detectron2/X-101-32x8d"] == (
        "https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/FAIR/X-101-32x8d.pkl"
    )
    assert found["matterport/mask_rcnn_coco"] == (
        "https://github.com/matterport/Mask_RCNN/releases/download/v2.0/mask_rcnn_coco.h5"
    )


@pytest.mark.parametrize(
    ("name", "changes", "coco", "imagenet"),
    [
        ("mask_rcnn_r50_fpn", {}, "detectron2/mask_rcnn_R_50_FPN_3x", "keras/resnet50"),
        ("mask_rcnn_r50_fpn", {"num_classes": 3}, "detectron2/mask_rcnn_R_50_FPN_3x", "keras/resnet50"),
        ("mask_rcnn_r50_fpn", {"branches": ()}, "detectron2/faster_rcnn_R_50_FPN_3x", "keras/resnet50"),
        ("keypoint_rcnn_r50_fpn", {}, "detectron2/keypoint_rcnn_R_50_FPN_3x", "keras/resnet50"),
        ("keypoint_mask_rcnn_r50_fpn", {}, "detectron2/keypoint_rcnn_R_50_FPN_3x", "keras/resnet50"),
        (
            "torchvision/maskrcnn_resnet50_fpn",
            {"branches": ()},
            "torchvision/fasterrcnn_resnet50_fpn",
            "torchvision/resnet50",
        ),
        ("mask_rcnn_r101_fpn", {"backbone__norm": "group"}, "detectron2/mask_rcnn_R_101_FPN_3x", "keras/resnet101"),
        ("nucleus", {}, "detectron2/mask_rcnn_R_50_FPN_3x", "keras/resnet50"),
        ("mask_rcnn_r18_fpn", {}, None, "torchvision/resnet18"),
        ("torchvision/maskrcnn_resnet50_fpn", {}, "torchvision/maskrcnn_resnet50_fpn", "torchvision/resnet50"),
        ("detectron2/mask_rcnn_R_101_C4", {}, "detectron2/mask_rcnn_R_101_C4_3x", "detectron2/R-101"),
        ("matterport/mask_rcnn_coco", {}, "matterport/mask_rcnn_coco", "keras/resnet101"),
    ],
)
def test_what_coco_and_imagenet_mean_for_a_preset(name, changes, coco, imagenet):
    config = presets.preset(name, **changes)
    assert zoo.find(name, config, "imagenet").name == imagenet
    if coco:
        assert zoo.find(name, config, "coco").name == coco
    else:
        with pytest.raises(WeightsError, match="no public coco weights .* weights='imagenet' are for its backbone"):
            zoo.find(name, config, "coco")


@pytest.mark.parametrize(
    ("names", "source"),
    [
        (["backbone.body.conv1.weight", "rpn.head.conv.0.0.weight"], "torchvision"),
        (["conv1.weight", "layer1.0.conv1.weight", "fc.bias"], "torchvision"),
        (["backbone.bottom_up.stem.conv1.weight", "proposal_generator.rpn_head.conv.weight"], "detectron2"),
        (["conv1_w", "res2_0_branch2a_w", "res_conv1_bn_s"], "detectron2"),
        (["conv1/conv1/kernel:0", "mrcnn_mask_conv1/mrcnn_mask_conv1/kernel:0"], "matterport"),
        (["conv1_conv/kernel", "conv2_block1_1_bn/gamma"], "keras"),
        (["res2a_branch2a/kernel", "bn2a_branch2a/gamma"], "keras"),
    ],
)
def test_whose_tensors_they_are(names, source):
    assert zoo.source_of(names) == source


def test_the_nearest_name():
    assert zoo.nearest("coc") == "; did you mean 'coco'?"
    assert zoo.nearest("detectron2/mask_rcnn_R_50_FPN") == "; did you mean 'detectron2/mask_rcnn_R_50_FPN_3x'?"
    assert zoo.nearest("something else") == ""


def test_the_readme_has_the_table():
    assert zoo.table() in (ROOT / "README.md").read_text(encoding="utf-8")


def test_models_told_to_answer_alike_are_those_compared():
    from tests.weights.test_reference_models import SOURCES

    told = {line.split("`")[3] for line in zoo.table().splitlines() if "| same answers |" in line}
    assert told == set(SOURCES)
