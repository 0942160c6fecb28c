from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


class CocoFolder:
    """A hand-made COCO data set in a folder: four images, five objects, a gap in the category ids.

    Image 10 (30 x 40): a polygon, a triangle and an uncompressed RLE; image 20 (24 x 20): a compressed
    RLE that fills the columns 4..9 and a crowd; images 30 and 40 have no objects.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.images = folder / "images"
        self.images.mkdir()
        rng = np.random.default_rng(0)
        for name, height, width in (("a.png", 30, 40), ("b.jpg", 24, 20), ("c.png", 16, 16), ("d.png", 8, 32)):
            pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
            Image.fromarray(pixels).save(self.images / name)
        self.json = folder / "instances.json"
        self.record = {
            "info": {"description": "hand-made"},
            "images": [
                {"id": 10, "file_name": "a.png", "height": 30, "width": 40},
                {"id": 20, "file_name": "b.jpg", "height": 24, "width": 20},
                {"id": 30, "file_name": "c.png", "height": 16, "width": 16},
                {"id": 40, "file_name": "d.png", "height": 8, "width": 32},
            ],
            "annotations": [
                {
                    **{"id": 101, "image_id": 10, "category_id": 7, "iscrowd": 0, "area": 80, "bbox": [5, 10, 10, 8]},
                    "segmentation": [[5, 10, 15, 10, 15, 18, 5, 18]],
                },
                {
                    **{"id": 102, "image_id": 10, "category_id": 3, "iscrowd": 0, "bbox": [20, 4, 16, 16]},
                    "segmentation": [[20, 4, 36, 4, 20, 20]],
                },
                {
                    # Columns 2 and 3, rows 25..29: runs down the columns of 30 pixels.
                    **{"id": 103, "image_id": 10, "category_id": 7, "iscrowd": 0, "area": 10, "bbox": [2, 25, 2, 5]},
                    "segmentation": {"size": [30, 40], "counts": [2 * 30 + 25, 5, 25, 5, 30 * 36]},
                },
                {
                    # 4 columns of 24 pixels outside, 6 inside, 10 outside: 96, 144, 240, as COCO writes them.
                    **{"id": 104, "image_id": 20, "category_id": 12, "iscrowd": 0, "area": 144, "bbox": [4, 0, 6, 24]},
                    "segmentation": {"size": [24, 20], "counts": "P3`4`7"},
                },
                {
                    **{"id": 105, "image_id": 20, "category_id": 3, "iscrowd": 1, "area": 24, "bbox": [12, 6, 6, 4]},
                    "segmentation": {"size": [24, 20], "counts": [12 * 24 + 6, 4, *([20, 4] * 5), 14 + 2 * 24]},
                },
            ],
            "categories": [
                {"id": 7, "name": "cat"},
                {"id": 3, "name": "dog"},
                {"id": 12, "name": "owl", "supercategory": "bird"},
            ],
        }

    def write(self, record: object = None) -> Path:
        self.json.write_text(json.dumps(self.record if record is None else record))
        return self.json

    def changed(self, change) -> Path:
        """Writes a copy of the record that the function `change` has altered."""
        record = copy.deepcopy(self.record)
        change(record)
        return self.write(record)


@pytest.fixture
def coco_folder(tmp_path) -> CocoFolder:
    made = CocoFolder(tmp_path)
    made.write()
    return made
