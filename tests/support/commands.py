"""Runs the command lines of scripts/ in this process: starting TensorFlow anew for each would take too long."""

from __future__ import annotations

import importlib
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]

# The shapes preset with a network that a test can wait for.
TINY = (
    *("input.shorter_edge=64", "input.longer_edge=96", "fpn.channels=16", "rpn.channels=16"),
    *("rpn.post_nms_train=40", "rpn.post_nms_test=30", "rpn.anchors_per_image=32", "roi.rois_per_image=16"),
    *("box_head.fc=[16]", "mask_head.convs=[8]", "mask_head.deconv=8", "detections.max_per_image=8"),
    *("training.steps=2", "training.warmup_steps=0", "training.decay_steps=[]", "training.images_per_device=2"),
)


def run_command(script: str, *arguments: object) -> int:
    """Runs scripts/`script`.py with these arguments and gives its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        patch.setattr(sys, "argv", [f"scripts/{script}.py", *map(str, arguments)])
        cli, module = importlib.import_module("_cli"), importlib.import_module(script)
        with pytest.raises(SystemExit) as ended:
            cli.run(module.main)
        # Names as short as "export" are nobody else's business.
        sys.modules.pop(script)
    return ended.value.code


def write_coco(folder: Path, images: int = 4, size: tuple[int, int] = (60, 80), **changes) -> Path:
    """A COCO data set of noise with two rectangles an image, in categories 3 and 7; returns its json.

    `changes` replace members of the json ("annotations", ...).
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    height, width = size
    records: dict = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
    }
    for number in range(1, images + 1):
        name = f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(folder / name)
        records["images"].append({"id": number, "file_name": name, "height": height, "width": width})
        for x, category in ((5, 3), (40, 7)):
            records["annotations"].append(rectangle(len(records["annotations"]) + 1, number, category, x, 10, 30, 40))
    path = folder / "data.json"
    path.write_text(json.dumps({**records, **changes}))
    return path


def rectangle(number: int, image: int, category: int, x: float, y: float, width: float, height: float) -> dict:
    """A COCO annotation whose polygon is its box."""
    polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
    record = {"id": number, "image_id": image, "category_id": category, "iscrowd": 0, "area": width * height}
    return {**record, "bbox": [x, y, width, height], "segmentation": [polygon]}


def run_sample(path: str, *arguments: object) -> int:
    """Runs samples/`path` with these arguments and gives its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [path, *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "samples" / path), run_name="__main__")
    return ended.value.code
