"""What of a configuration the weights depend on: their names and shapes, and what they mean."""

from __future__ import annotations

from typing import Any

from mrcnn_tf.config import Config

Difference = tuple[str, Any, Any]  # name of a value, the first configuration's, the second's

# What the weights mean depends on these values too; another one gives answers, but poor ones.
CONVENTIONS = (
    "input.channel_order",
    "input.mean",
    "input.std",
    "backbone.stride_in",
    "backbone.norm_epsilon",
    "backbone.pool_padding",
    "anchors.ratios",
    "anchors.offset",
    "anchors.shrink",
    "anchors.rounded",
    "anchors.stride_rule",
    "roi.layer",
    "roi.reduce",
    "roi.half_pixel",
    "roi.canonical_size",
    "box_head.res5_stride",
    "box_head.delta_weights",
)


def shape_values(config: Config) -> dict[str, Any]:
    """The values of a configuration that the weights' names and shapes depend on, by dotted name."""
    values = {
        "num_classes": config.num_classes,
        "branches": tuple(sorted(config.branches)),
        "input.channels": config.input.channels,
        "backbone.name": config.backbone.name,
        "backbone.features": config.backbone.features,
        "anchors at each position": config.anchors.per_position,
        "rpn.channels": config.rpn.channels,
        "rpn.convs": config.rpn.convs,
    }
    norms = {"backbone": config.backbone.norm}
    if config.backbone.features != "c4":  # there res5 stands in the place of these
        values["box_head.pool"] = config.box_head.pool
        values["box_head.convs"] = config.box_head.convs
        values["box_head.fc"] = config.box_head.fc
        norms["box_head"] = config.box_head.norm
    if config.backbone.features == "fpn":
        values["fpn.channels"] = config.fpn.channels
        norms["fpn"] = config.fpn.norm
    if "mask" in config.branches:
        values["mask_head.fc"] = config.mask_head.fc
        values["mask_head.activation"] = config.mask_head.activation
        values["mask_head.class_agnostic"] = config.mask_head.class_agnostic
        if config.mask_head.fc:
            values["mask_head.pool"] = config.mask_head.pool
        else:
            values["mask_head.convs"] = config.mask_head.convs
            values["mask_head.deconv"] = config.mask_head.deconv
            norms["mask_head"] = config.mask_head.norm
    if "keypoints" in config.branches:
        values["keypoint_head.convs"] = config.keypoint_head.convs
        values["keypoints"] = len(config.keypoint_head.names)
    # Frozen and trained batch norms have the same weights.
    same = {"frozen": "batch", "sync_batch": "batch"}
    values.update({f"{section}.norm": same.get(norm, norm) for section, norm in norms.items()})
    return values


def shapes(first: Config, second: Config) -> list[Difference]:
    """Where two configurations have weights of other names or shapes."""
    before, after = shape_values(first), shape_values(second)
    names = list(dict.fromkeys([*before, *after]))
    return [(name, before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)]


def conventions(first: Config, second: Config) -> list[Difference]:
    """Where the weights of one configuration would mean something else in the other."""
    pairs = [(name, value(first, name), value(second, name)) for name in CONVENTIONS]
    return [pair for pair in pairs if not _means_the_same(*pair)]


def _means_the_same(name: str, first: Any, second: Any) -> bool:
    """Equal, or nearly so: means are published with and without decimals, epsilons rounded."""
    if name == "input.mean":
        return len(first) == len(second) and max(abs(a - b) for a, b in zip(first, second)) <= 0.5
    if name == "backbone.norm_epsilon" and first and second:
        return 0.5 < first / second < 2
    return first == second


def value(config: Config, name: str) -> Any:
    """The value called `name`, as "roi.half_pixel"."""
    found: Any = config
    for part in name.split("."):
        found = getattr(found, part)
    return found
