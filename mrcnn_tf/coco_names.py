"""The names of COCO's classes and keypoints, in the order of its ids."""

_TEXT = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, "
    "parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, "
    "handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, "
    "surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, "
    "broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, "
    "laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, "
    "scissors, teddy bear, hair drier, toothbrush"
)
CLASSES = tuple(_TEXT.split(", "))
# COCO's ids run to 90 with ten gaps, which torchvision keeps as classes without objects.
GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
NO_CLASS = "N/A"


def _with_gaps(class_names: tuple[str, ...]) -> tuple[str, ...]:
    rest = iter(class_names)
    return tuple(NO_CLASS if number in GAPS else next(rest) for number in range(1, 91))


CLASSES_WITH_GAPS = _with_gaps(CLASSES)

KEYPOINTS = (
    "nose",
    *(
        f"{side}_{part}"
        for part in ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
        for side in ("left", "right")
    ),
)
# Pairs of keypoints that belong together, counted from 0: legs, hips, trunk, shoulders, arms, face.
SKELETON = (
    (15, 13),
    (13, 11),
    (16, 14),
    (14, 12),
    (11, 12),
    (5, 11),
    (6, 12),
    (5, 6),
    (5, 7),
    (6, 8),
    (7, 9),
    (8, 10),
    (1, 2),
    (0, 1),
    (0, 2),
    (1, 3),
    (2, 4),
    (3, 5),
    (4, 6),
)
