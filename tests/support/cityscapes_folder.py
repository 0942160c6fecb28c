"""Makes folders in Cityscapes' exact layout, with small images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

ROAD, POLE, SKY = 7, 17, 23


def write_image(root: Path, split: str, name: str, size: tuple[int, int]) -> Path:
    """Noise of `size` (height, width) as <root>/leftImg8bit/<split>/<city>/<name>_leftImg8bit.png."""
    path = root / "leftImg8bit" / split / name.split("_")[0] / f"{name}_leftImg8bit.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.RandomState(len(list(path.parent.iterdir()))).randint(0, 256, (*size, 3))
    Image.fromarray(noise.astype(np.uint8)).save(path)
    return path


def write_ids(root: Path, split: str, name: str, ids: np.ndarray) -> Path:
    """A map of ids [H, W] as the 16-bit PNG beside which Cityscapes has its polygons."""
    path = root / "gtFine" / split / name.split("_")[0] / f"{name}_gtFine_instanceIds.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids.astype(np.uint16)).save(path)
    return path


def write_polygons(root: Path, split: str, name: str, size: tuple[int, int], objects: list[dict]) -> Path:
    """Polygons from back to front as Cityscapes' json."""
    path = root / "gtFine" / split / name.split("_")[0] / f"{name}_gtFine_polygons.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"imgHeight": size[0], "imgWidth": size[1], "objects": objects}))
    return path


def write_scene(root: Path, split: str, name: str, ids: np.ndarray) -> None:
    """An image and its map of ids."""
    write_image(root, split, name, ids.shape)
    write_ids(root, split, name, ids)


def street() -> np.ndarray:
    """[64, 128]: a car in two parts, a person of one pixel, groups, whole columns, a caravan."""
    ids = np.full((64, 128), ROAD)
    ids[:, 60:62] = 31000  # one run over two columns
    ids[10:30, 20:50] = 26000
    ids[10:30, 30:34] = POLE
    ids[45:58, 70:90] = 26001
    ids[40, 100] = 24003
    ids[50:60, 100:] = 26
    ids[0:4, 90:110] = 24
    ids[:, 127] = 33012
    ids[0:3, 0:3] = 29000
    ids[3:6, 0:3] = 29
    return ids


def random_scene(seed: int, size: tuple[int, int] = (96, 160)) -> np.ndarray:
    """[H, W]: rectangles of many labels over each other, by a generator that stays the same in all versions."""
    rng = np.random.RandomState(seed)
    ids = np.full(size, ROAD)
    labels = [24, 25, 26, 27, 28, 31, 32, 33]
    for number in range(rng.randint(4, 22)):
        label = labels[rng.randint(8)] if rng.rand() < 0.85 else rng.randint(0, 34)
        value = label if label < 24 or rng.rand() < 0.12 else label * 1000 + number
        height, width = rng.randint(4, 45, 2)
        top, left = rng.randint(0, size[0] - 4), rng.randint(0, size[1] - 4)
        ids[top : top + height, left : left + width] = value
    return ids
