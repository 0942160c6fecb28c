"""Reference weights that need no download: every tensor is drawn from its own name.

`state_dict(spec, seed)` rebuilds, with numpy alone, the exact weights under which the
arrays in this folder were recorded. `spec` maps a checkpoint's tensor names to shapes
(`*_spec.json`, PyTorch layout: convolutions OIHW, dense OI). The same names and shapes
are those of the public checkpoints of the same architecture, so what converts this
dictionary converts those.
"""

import json
import zlib

import numpy as np


def tensor(name, shape, seed=0, gains=None):
    """One named tensor: float32 array of `shape`, a pure function of the arguments."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.endswith("running_var"):
        return rng.uniform(0.7, 1.4, shape).astype(np.float32)
    if name.endswith("running_mean"):
        return (0.1 * rng.standard_normal(shape)).astype(np.float32)
    is_norm = len(shape) == 1 and name.endswith("weight")
    if is_norm:
        # The last norm of a residual block is small, so that activations stay bounded.
        last = name.endswith(("bn3.weight", "conv3.norm.weight"))
        low, high = (0.1, 0.3) if last else (0.8, 1.2)
        return rng.uniform(low, high, shape).astype(np.float32)
    if len(shape) == 1:
        return (0.05 * rng.standard_normal(shape)).astype(np.float32)
    fan_in = int(np.prod(shape[1:]))
    gains = {**GAINS, **(gains or {})}
    gain = gains.get(next((key for key in gains if key in name), None), 2.0)
    return (np.sqrt(gain / fan_in) * rng.standard_normal(shape)).astype(np.float32)


# Output layers get gains of their own, so that scores, boxes and masks spread visibly.
GAINS = {
    "fpn.inner_blocks": 0.05,
    "fpn_lateral": 0.05,
    "rpn.head.cls_logits": 4.0,
    "rpn.head.bbox_pred": 0.1,
    "box_predictor.cls_score": 4.0,
    "box_predictor.bbox_pred": 4.0,
    "mask_fcn_logits": 4.0,
    "kps_score_lowres": 4.0,
    "objectness_logits": 4.0,
    "anchor_deltas": 0.1,
}


def state_dict(spec, seed=0, gains=None):
    """All tensors of a checkpoint. `spec`: {name: shape} or its json file's path; `gains` replace GAINS by name."""
    if not isinstance(spec, dict):
        with open(spec) as handle:
            spec = json.load(handle)
    return {name: tensor(name, tuple(shape), seed, gains) for name, shape in spec.items()}
