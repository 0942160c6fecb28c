#!/usr/bin/env python3
"""Measures a trained model on annotated images: COCO's AP and AR of boxes, masks and keypoints, over all and
for each class."""

from __future__ import annotations

import argparse
from pathlib import Path

import _cli

EXAMPLES = """examples:
  scripts/evaluate.py runs/first --data val.json --images val/
  scripts/evaluate.py runs/first/model.keras --data val.json --images val/ --output results/
  scripts/evaluate.py quickstart --shapes 100

  with several views of each image, slower and better:
    scripts/evaluate.py runs/first --data val.json --images val/ --tta-scales 600,800,1000 --tta-flip

  crowded images, with more detections an image than COCO's 100:
    scripts/evaluate.py runs/cells --data val.json --images val/ detections.max_per_image=300

  images without annotations, for the COCO server (results.json and pictures/ alone):
    scripts/evaluate.py runs/coco --data image_info_test-dev2017.json --images test2017/ --test --output test-dev/

The output folder gets evaluation.json (all measures), results.json (COCO's results format, as the COCO server takes
it; for keypoints keypoints.json as well, without boxes and masks), per_class.png, and pictures/ with ground truth
beside prediction."""


def parse_arguments() -> argparse.Namespace:
    parser = _cli.make_parser(__doc__, EXAMPLES, _cli.OVERRIDES)
    add = parser.add_argument
    add("model", help="folder of a training (its best weights are taken), or a .keras file")
    add("--data", metavar="JSON", help="annotations, COCO format")
    add("--images", metavar="DIR", help="the folder of their images")
    add("--shapes", type=int, metavar="N", help="evaluate on N drawn images of shapes instead")
    add("--cityscapes", metavar="DIR", help="evaluate on Cityscapes' validation images instead")
    add("--test", action="store_true", help="the JSON has no annotations: write what is found, measure nothing")
    add("--skip-bad", action="store_true", help="leave bad records and images out, and tell at the end")
    add("--output", metavar="DIR", help="where the results go (default: 'evaluation' in the model's folder)")
    add("--batch-size", type=int, default=1, metavar="N", help="images at once (default: 1)")
    add("--max-detections", type=int, metavar="N", help="detections an image that count (default: the model's limit)")
    add("--pictures", type=int, default=8, metavar="N", help="how many images to draw (default: 8)")
    add("--proposals", metavar="FILE", help="of save_proposals.py, to look at these and not at the model's own")
    _cli.add_augmentation(parser)
    _cli.add_overrides(parser)
    return parser.parse_intermixed_args()


def main() -> int:
    arguments = parse_arguments()
    overrides = _cli.parse_overrides(arguments.overrides)
    if sum(given is not None for given in (arguments.data, arguments.shapes, arguments.cityscapes)) != 1:
        raise _cli.UsageError("give either --data JSON with --images DIR, or --shapes N, or --cityscapes DIR")
    if arguments.images is not None and arguments.data is None:
        raise _cli.UsageError("--images is the folder of the images of --data JSON; leave it out")
    if arguments.test and (arguments.data is None or arguments.max_detections is not None):
        raise _cli.UsageError("--test is for --data JSON, and measures nothing that --max-detections could limit")
    _cli.check_least(1, arguments, "shapes", "batch_size", "max_detections")
    _cli.check_least(0, arguments, "pictures")
    import mrcnn_tf

    model = _cli.load(arguments.model, overrides)
    names = model.config.class_names
    if arguments.shapes is not None:
        dataset = mrcnn_tf.shapes(arguments.shapes, seed=1)
    elif arguments.cityscapes is not None:
        dataset = _cli.read_cityscapes(arguments.cityscapes, "val", arguments.skip_bad)
    else:
        dataset = _cli.read_dataset(arguments.data, arguments.images, arguments.skip_bad, names, not arguments.test)
    if len(dataset.class_names) != model.config.num_classes:
        known = model.config.num_classes
        raise _cli.UsageError(f"the model knows {known} classes, {dataset.name} has {len(dataset.class_names)}")
    if names and tuple(dataset.class_names) != names:
        theirs, ours = (", ".join(each) for each in (names, dataset.class_names))
        raise _cli.UsageError(f"the model knows the classes {theirs}, {dataset.name} has {ours}")
    if arguments.proposals is not None:
        dataset = mrcnn_tf.with_proposals(dataset, arguments.proposals)
    source = Path(arguments.model)
    beside = (source if source.is_dir() else source.parent) / "evaluation"
    output = Path(arguments.output or beside)
    options = {
        "batch_size": arguments.batch_size,
        "pictures": arguments.pictures,
        "augmentation": _cli.augmentation(arguments, model.config.input.shorter_edge[-1]),
    }
    things = {"results": output / "results.json", "pictures": output / "pictures"}
    if arguments.test:
        print(f"{mrcnn_tf.server_results(model, dataset, output, **options)} objects found")
    else:
        limit = arguments.max_detections
        print(mrcnn_tf.evaluation_report(model, dataset, output, max_detections=limit, **options).table())
        things = {"measures": output / "evaluation.json", **things}
    _cli.print_problems(dataset)
    _cli.made(**things)
    return 0


if __name__ == "__main__":
    _cli.run(main)
