"""The tables of the paper that `reproduce.py` makes: rows, presets, measures, the paper's numbers and its directions.

Numbers are percent, as printed. A metric is called as in `Evaluation.metrics`; those that begin with "benchmark/" are
the measures of Cityscapes' benchmark, "benchmark/AP/car" that of a class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Numbers = tuple[float | None, ...]


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
        name: for --rows and the folder.
        text: what the line is called in the table.
        preset: the network; "" for a line that only repeats numbers of the paper.
        paper: the paper's numbers, one for each of the table's metrics; None where it has none.
        weights: what the training starts from, "imagenet" or "coco".
    """

    name: str
    text: str
    preset: str
    paper: Numbers
    weights: str = "imagenet"


@dataclass(frozen=True)
class Direction:
    """Something that the paper says of a table: a sum of a metric over rows, with signs, that should be above zero.

    Attributes:
        text: in words.
        metric: which measure.
        terms: (sign, table, row) each.
        or_equal: it is enough that the sum is not below zero by more than its standard error.
        said: the paper's number where its text alone has it; else the sum of its rows is taken.
    """

    text: str
    metric: str
    terms: tuple[tuple[int, str, str], ...]
    or_equal: bool = False
    said: float | None = None


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    Attributes:
        name: "2c".
        title: what it compares.
        data: "instances", "persons" or "cityscapes".
        metrics: its columns.
        rows, directions: see there.
        note: what differs from the paper's setting.
    """

    name: str
    title: str
    data: str
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    directions: tuple[Direction, ...] = ()
    note: str = ""

    def row(self, name: str) -> Row:
        """The row of that name."""
        return next(row for row in self.rows if row.name == name)

    @property
    def trained(self) -> tuple[Row, ...]:
        """The rows that are networks."""
        return tuple(row for row in self.rows if row.preset)


def _over(text: str, table: str, better: str, worse: str, metric: str, **more: Any) -> Direction:
    return Direction(text, metric, ((1, table, better), (-1, table, worse)), **more)


_MASK3 = ("mask/AP", "mask/AP50", "mask/AP75")
_BOX3 = ("box/AP", "box/AP50", "box/AP75")
_MASK6 = (*_MASK3, "mask/APs", "mask/APm", "mask/APl")
_BOX6 = (*_BOX3, "box/APs", "box/APm", "box/APl")
_TEST_DEV = (
    "The paper measured on COCO test-dev, whose annotations nobody has; ours are on the validation images given."
)
_JOINT = (
    "The paper's rows take proposals of an RPN trained apart, unless it says otherwise; ours train it jointly, with "
    "shared features."
)

_INSTANCES = (
    Table(
        "1",
        "Instance segmentation: mask AP",
        "instances",
        _MASK6,
        (
            Row("r101_c4", "ResNet-101-C4", "mask_rcnn_r101_c4", (33.1, 54.9, 34.8, 12.1, 35.6, 51.1)),
            Row("r101_fpn", "ResNet-101-FPN", "mask_rcnn_r101_fpn", (35.7, 58.0, 37.8, 15.5, 38.1, 52.4)),
            Row("x101_fpn", "ResNeXt-101-FPN", "mask_rcnn_x101_64x4d_fpn", (37.1, 60.0, 39.4, 16.9, 39.9, 53.5)),
        ),
        (
            _over("FPN above C4 (ResNet-101)", "1", "r101_fpn", "r101_c4", "mask/AP"),
            _over("ResNeXt-101 above ResNet-101", "1", "x101_fpn", "r101_fpn", "mask/AP"),
        ),
        f"{_TEST_DEV} {_JOINT}",
    ),
    Table(
        "2a",
        "Backbone architecture: mask AP",
        "instances",
        _MASK3,
        (
            Row("r50_c4", "ResNet-50-C4", "mask_rcnn_r50_c4", (30.3, 51.2, 31.5)),
            Row("r101_c4", "ResNet-101-C4", "mask_rcnn_r101_c4", (32.7, 54.2, 34.3)),
            Row("r50_fpn", "ResNet-50-FPN", "mask_rcnn_r50_fpn", (33.6, 55.2, 35.3)),
            Row("r101_fpn", "ResNet-101-FPN", "mask_rcnn_r101_fpn", (35.4, 57.3, 37.5)),
            Row("x101_fpn", "ResNeXt-101-FPN", "mask_rcnn_x101_64x4d_fpn", (36.7, 59.5, 38.9)),
        ),
        (
            _over("101 layers above 50 (C4)", "2a", "r101_c4", "r50_c4", "mask/AP"),
            _over("101 layers above 50 (FPN)", "2a", "r101_fpn", "r50_fpn", "mask/AP"),
            _over("FPN above C4 (ResNet-50)", "2a", "r50_fpn", "r50_c4", "mask/AP"),
            _over("ResNeXt-101 above ResNet-101", "2a", "x101_fpn", "r101_fpn", "mask/AP"),
        ),
        _JOINT,
    ),
    Table(
        "2b",
        "Multinomial against independent masks (ResNet-50-C4): mask AP",
        "instances",
        _MASK3,
        (
            Row("softmax", "softmax", "mask_rcnn_r50_c4_softmax", (24.8, 44.1, 25.1)),
            Row("sigmoid", "sigmoid", "mask_rcnn_r50_c4", (30.3, 51.2, 31.5)),
            Row("agnostic", "one mask for all classes (section 4.2)", "mask_rcnn_r50_c4_agnostic", (29.7, None, None)),
        ),
        (
            _over("sigmoid above softmax", "2b", "sigmoid", "softmax", "mask/AP"),
            _over("masks of classes not below one for all", "2b", "sigmoid", "agnostic", "mask/AP", or_equal=True),
        ),
        _JOINT,
    ),
    Table(
        "2c",
        "RoI layers at stride 16 (ResNet-50-C4): mask AP",
        "instances",
        _MASK3,
        (
            Row("roipool", "RoIPool, max", "mask_rcnn_r50_c4_roipool", (26.9, 48.8, 26.4)),
            Row("roiwarp_max", "RoIWarp, max", "mask_rcnn_r50_c4_roiwarp_max", (27.2, 49.2, 27.1)),
            Row("roiwarp", "RoIWarp, average", "mask_rcnn_r50_c4_roiwarp", (27.1, 48.9, 27.1)),
            Row("roialign_max", "RoIAlign, max", "mask_rcnn_r50_c4_roialign_max", (30.2, 51.0, 31.8)),
            Row("roialign", "RoIAlign, average", "mask_rcnn_r50_c4", (30.3, 51.2, 31.5)),
        ),
        (
            _over("RoIAlign above RoIPool (max)", "2c", "roialign_max", "roipool", "mask/AP75"),
            _over("RoIAlign above RoIWarp (max)", "2c", "roialign_max", "roiwarp_max", "mask/AP75"),
            _over("RoIAlign above RoIWarp (average)", "2c", "roialign", "roiwarp", "mask/AP75"),
            _over("RoIAlign (average) above RoIPool", "2c", "roialign", "roipool", "mask/AP75"),
        ),
        _JOINT,
    ),
    Table(
        "2d",
        "RoI layers at stride 32 (ResNet-50-C5), and on the pyramid (ResNet-50-FPN): mask and box AP",
        "instances",
        (*_MASK3, *_BOX3),
        (
            Row("roipool", "RoIPool", "mask_rcnn_r50_c5_roipool", (23.6, 46.5, 21.6, 28.2, 52.7, 26.9)),
            Row("roialign", "RoIAlign", "mask_rcnn_r50_c5", (30.9, 51.8, 32.1, 34.0, 55.3, 36.4)),
            Row("roipool_fpn", "RoIPool, FPN (section 4.2)", "mask_rcnn_r50_fpn_roipool", (None,) * 6),
            Row("roialign_fpn", "RoIAlign, FPN (table 2e)", "mask_rcnn_r50_fpn", (33.6, 55.2, 35.3, None, None, None)),
        ),
        (
            _over("RoIAlign above RoIPool: masks", "2d", "roialign", "roipool", "mask/AP75"),
            _over("RoIAlign above RoIPool: boxes", "2d", "roialign", "roipool", "box/AP75"),
            Direction(
                "the gap is wider than at stride 16 (table 2c)",
                "mask/AP75",
                ((1, "2d", "roialign"), (-1, "2d", "roipool"), (-1, "2c", "roialign"), (1, "2c", "roipool")),
            ),
            Direction(
                "stride 32 above stride 16 (table 2c), with RoIAlign",
                "mask/AP",
                ((1, "2d", "roialign"), (-1, "2c", "roialign")),
            ),
            _over(
                "RoIAlign above RoIPool on the pyramid: masks", "2d", "roialign_fpn", "roipool_fpn", "mask/AP", said=1.5
            ),
            _over(
                "RoIAlign above RoIPool on the pyramid: boxes", "2d", "roialign_fpn", "roipool_fpn", "box/AP", said=0.5
            ),
        ),
        _JOINT,
    ),
    Table(
        "2e",
        "Mask branch (ResNet-50-FPN): mask AP",
        "instances",
        _MASK3,
        (
            Row("mlp", "MLP, two hidden layers", "mask_rcnn_r50_fpn_mlp", (31.5, 53.7, 32.8)),
            Row("mlp3", "MLP, three hidden layers", "mask_rcnn_r50_fpn_mlp3", (31.5, 54.0, 32.6)),
            Row("fcn", "FCN", "mask_rcnn_r50_fpn", (33.6, 55.2, 35.3)),
        ),
        (
            _over("FCN above the MLP of two layers", "2e", "fcn", "mlp", "mask/AP"),
            _over("FCN above the MLP of three layers", "2e", "fcn", "mlp3", "mask/AP"),
        ),
        _JOINT,
    ),
    Table(
        "3",
        "Object detection: box AP",
        "instances",
        _BOX6,
        (
            Row(
                "faster_r101_fpn_roipool",
                "Faster R-CNN with RoIPool, ResNet-101-FPN",
                "faster_rcnn_r101_fpn_roipool",
                (36.2, 59.1, 39.0, 18.2, 39.0, 48.2),
            ),
            Row(
                "faster_r101_fpn",
                "Faster R-CNN with RoIAlign, ResNet-101-FPN",
                "faster_rcnn_r101_fpn",
                (37.3, 59.6, 40.3, 19.8, 40.2, 48.8),
            ),
            Row(
                "mask_r101_fpn",
                "Mask R-CNN, ResNet-101-FPN",
                "mask_rcnn_r101_fpn",
                (38.2, 60.3, 41.7, 20.1, 41.1, 50.2),
            ),
            Row(
                "mask_x101_fpn",
                "Mask R-CNN, ResNeXt-101-FPN",
                "mask_rcnn_x101_64x4d_fpn",
                (39.8, 62.3, 43.4, 22.1, 43.2, 51.2),
            ),
        ),
        (
            _over("RoIAlign above RoIPool", "3", "faster_r101_fpn", "faster_r101_fpn_roipool", "box/AP"),
            _over(
                "training masks does not hurt boxes", "3", "mask_r101_fpn", "faster_r101_fpn", "box/AP", or_equal=True
            ),
            _over("ResNeXt-101 above ResNet-101", "3", "mask_x101_fpn", "mask_r101_fpn", "box/AP"),
        ),
        f"{_TEST_DEV} {_JOINT}",
    ),
)

_KEYPOINTS = ("keypoints/AP", "keypoints/AP50", "keypoints/AP75", "keypoints/APm", "keypoints/APl")
_PERSONS = (
    Table(
        "4",
        "Keypoints of persons (ResNet-50-FPN)",
        "persons",
        _KEYPOINTS,
        (
            Row("keypoints", "Mask R-CNN, keypoint-only", "keypoint_rcnn_r50_fpn", (62.7, 87.0, 68.4, 57.4, 71.1)),
            Row("both", "Mask R-CNN, keypoint & mask", "keypoint_mask_rcnn_r50_fpn", (63.1, 87.3, 68.7, 57.8, 71.4)),
        ),
        (_over("masks do not hurt keypoints", "4", "both", "keypoints", "keypoints/AP", or_equal=True),),
        f"{_TEST_DEV} {_JOINT}",
    ),
    Table(
        "5",
        "Boxes, masks and keypoints of persons (ResNet-50-FPN)",
        "persons",
        ("box/AP", "mask/AP", "keypoints/AP"),
        (
            Row("boxes", "Faster R-CNN", "person_faster_rcnn_r50_fpn", (52.5, None, None)),
            Row("masks", "Mask R-CNN, mask-only", "person_mask_rcnn_r50_fpn", (53.6, 45.8, None)),
            Row("keypoints", "Mask R-CNN, keypoint-only", "keypoint_rcnn_r50_fpn", (50.7, None, 64.2)),
            Row("both", "Mask R-CNN, keypoint & mask", "keypoint_mask_rcnn_r50_fpn", (52.0, 45.1, 64.7)),
        ),
        (
            _over("masks do not hurt boxes", "5", "masks", "boxes", "box/AP", or_equal=True),
            _over("masks do not hurt keypoints", "5", "both", "keypoints", "keypoints/AP", or_equal=True),
            _over("keypoints cost boxes a little", "5", "boxes", "keypoints", "box/AP"),
            _over("keypoints cost boxes beside masks", "5", "masks", "both", "box/AP"),
            _over("keypoints cost masks a little", "5", "masks", "both", "mask/AP"),
        ),
        _JOINT,
    ),
    Table(
        "6",
        "RoIAlign against RoIPool for keypoints (ResNet-50-FPN)",
        "persons",
        _KEYPOINTS,
        (
            Row("roipool", "RoIPool", "keypoint_rcnn_r50_fpn_roipool", (59.8, 86.2, 66.7, 55.1, 67.4)),
            Row("roialign", "RoIAlign", "keypoint_rcnn_r50_fpn", (64.2, 86.6, 69.7, 58.7, 73.0)),
        ),
        (_over("RoIAlign above RoIPool", "6", "roialign", "roipool", "keypoints/AP"),),
        _JOINT,
    ),
)

_CLASSES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
_CITYSCAPES = Table(
    "7",
    "Cityscapes: mask AP (ResNet-50-FPN)",
    "cityscapes",
    ("benchmark/AP", "benchmark/AP50", *(f"benchmark/AP/{name}" for name in _CLASSES)),
    (
        Row("fine", "fine, validation", "cityscapes", (31.5, None, None, None, None, 28.8, 53.5, 33.0, None, None)),
        Row("fine_test", "fine, test server", "", (26.2, 49.9, 30.5, 23.7, 46.9, 22.8, 32.2, 18.6, 19.1, 16.0)),
        Row(
            "fine_coco",
            "fine + COCO, validation",
            "cityscapes_from_coco",
            (36.4, None, None, None, None, 38.0, 57.5, 41.2, None, None),
            weights="coco",
        ),
        Row(
            "fine_coco_test",
            "fine + COCO, test server",
            "",
            (32.0, 58.1, 34.8, 27.0, 49.1, 30.1, 40.9, 30.9, 24.1, 18.7),
        ),
    ),
    (_over("COCO weights above ImageNet's", "7", "fine_coco", "fine", "benchmark/AP"),),
    "Ours are of the validation images, by the rules of the benchmark's own script, which the server applies to the "
    f"test images; samples/cityscapes/train.py writes these for it, and gives COCO's measure beside this one. {_JOINT}",
)

TABLES: dict[str, Table] = {table.name: table for table in (*_INSTANCES, *_PERSONS, _CITYSCAPES)}


def paper_value(table: str, row: str, metric: str) -> float | None:
    """The paper's number, in percent; None where it has none."""
    found = TABLES[table]
    return found.row(row).paper[found.metrics.index(metric)] if metric in found.metrics else None
