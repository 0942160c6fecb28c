#!/usr/bin/env python3
"""Finds objects in pictures: draws them over the pictures, and writes them down as one COCO json."""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Sequence
from pathlib import Path

import _cli

EXAMPLES = """examples:
  scripts/predict.py runs/first photo.jpg --output found/
  scripts/predict.py runs/first folder-of-photos/ more/*.png --output found/ --score 0.7
  scripts/predict.py runs/first/model.keras photo.jpg --output found/ --set detections.max_per_image=300

The output folder gets a picture for every image, and detections.json: a COCO file with "images", "annotations" (each
with its score, box, and mask as RLE or keypoints) and "categories", which annotation tools and pycocotools read."""

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".npy")


def parse_arguments() -> argparse.Namespace:
    parser = _cli.make_parser(__doc__, EXAMPLES, _cli.OVERRIDES)
    add = parser.add_argument
    add("model", help="folder of a training (its best weights are taken), or a .keras file")
    add("images", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    add("--output", required=True, metavar="DIR", help="where pictures and detections.json go")
    add("--score", type=float, default=0.5, metavar="S", help="leave out what is less sure, 0 to 1 (default: 0.5)")
    add("--no-pictures", action="store_true", help="write detections.json only")
    add("--skip-bad", action="store_true", help="pass over images that cannot be read, and tell at the end")
    add(
        "--set",
        nargs="+",
        default=[],
        dest="overrides",
        metavar="section.field=value",
        help="values of the configuration; see below",
    )
    _cli.add_augmentation(parser)
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    overrides = _cli.parse_overrides(arguments.overrides)
    if not 0 <= arguments.score <= 1:
        raise _cli.UsageError(f"--score {arguments.score}: should be in 0 to 1")
    paths = image_paths(arguments.images)
    import mrcnn_tf
    from mrcnn_tf import Problems

    # The network is asked for what is wanted, so that nothing is found in vain or hidden by its own threshold.
    overrides.setdefault("detections.score_threshold", min(arguments.score, 0.999))
    model = _cli.load(arguments.model, overrides)
    views = _cli.augmentation(arguments, model.config.input.shorter_edge[-1])
    predict = model.predict_images
    if views is not None:
        predict = functools.partial(mrcnn_tf.predict_augmented, model, **vars(views))
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    names = model.config.class_names or [f"class {number}" for number in range(1, model.config.num_classes + 1)]
    coco = {
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, start=1)],
    }
    skeleton = None
    if "keypoints" in model.config.branches:
        skeleton = mrcnn_tf.visualize.Skeleton.of(model.config.keypoint_head)
        for category in coco["categories"]:
            category["keypoints"] = list(skeleton.names)
            category["skeleton"] = [[start + 1, end + 1] for start, end in skeleton.lines]
    problems = Problems()
    taken = {path.resolve() for path in paths}  # no picture may replace what it is drawn over
    try:
        for path in paths:
            try:
                detections = predict([path])[0]
            except mrcnn_tf.DataError as error:
                if not arguments.skip_bad:
                    raise
                problems.add(error.kind, str(error))
                continue
            add_to_coco(coco, path, detections)
            counts = ", ".join(f"{detections.names.count(name)} {name}" for name in dict.fromkeys(detections.names))
            print(f"{path}: {counts or 'nothing found'}", flush=True)
            if not arguments.no_pictures:
                draw(model, path, detections, free_name(output, path, taken), skeleton)
    finally:  # what was found stays, whatever ends the run
        (output / "detections.json").write_text(json.dumps(coco), encoding="utf-8")
    if problems:
        print(problems.summary())
    things = {} if arguments.no_pictures else {"pictures": output}
    _cli.made(**things, detections=f"{output / 'detections.json'} ({len(coco['annotations'])} objects)")
    return 0


def image_paths(sources: Sequence[str]) -> list[Path]:
    """The files named, and those in the folders named that are not hidden, in the order of their names.

    Raises:
        UsageError: something that is not there, or a folder without images.
    """
    paths: list[Path] = []
    for source in map(Path, sources):
        if source.is_dir():
            found = sorted(path for path in source.rglob("*") if _is_image(path, source))
            if not found:
                raise _cli.UsageError(f"{source}: there is no image in this folder ({' '.join(ENDINGS)})")
            paths += found
        elif source.exists():
            paths.append(source)
        else:
            raise _cli.UsageError(f"{source}: there is no such file or folder")
    return paths


def _is_image(path: Path, folder: Path) -> bool:
    """Whether it is one by its name, and not hidden: macOS puts a ._photo.jpg beside each on a foreign disk."""
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return not hidden and path.suffix.lower() in ENDINGS and path.is_file()


def free_name(output: Path, path: Path, taken: set[Path]) -> Path:
    """A picture's name in `output` that is none of `taken`, the resolved names of all images and pictures so far."""
    name, number = output / f"{path.stem}.png", 1
    while name.resolve() in taken:
        number += 1
        name = output / f"{path.stem}_{number}.png"
    taken.add(name.resolve())
    return name


def add_to_coco(coco: dict, path: Path, detections) -> None:
    """Adds an image and its objects, numbered from 1, to a COCO dictionary."""
    from pycocotools import mask as coco_mask

    number = len(coco["images"]) + 1
    height, width = detections.image_size
    coco["images"].append({"id": number, "file_name": str(path), "height": height, "width": width})
    for record in detections.to_coco(number, range(1, len(coco["categories"]) + 1)):
        has_mask = "segmentation" in record
        area = float(coco_mask.area(record["segmentation"])) if has_mask else record["bbox"][2] * record["bbox"][3]
        if "keypoints" in record:
            record["num_keypoints"] = len(record["keypoints"]) // 3
        coco["annotations"].append({"id": len(coco["annotations"]) + 1, **record, "area": area, "iscrowd": 0})


def draw(model, path: Path, detections, name: Path, skeleton) -> None:
    """Writes the picture of one image with its objects."""
    from mrcnn_tf import load_image, visualize

    image = load_image(path, model.config.input.channels)
    visualize.save(visualize.draw_detections(image, detections, skeleton=skeleton), name)


if __name__ == "__main__":
    _cli.run(main)
