"""What all tests share: quiet TensorFlow, and the real data and recorded numbers where a machine has them."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# TensorFlow counts tracings over all models of the process, so which test is told depends on those before it.
logging.getLogger("tensorflow").addFilter(lambda record: "tf.function retracing" not in record.getMessage())


def pytest_collection_modifyitems(items):
    """The samples' long trainings come last: a limited time is spent on everything else first."""
    items.sort(key=lambda item: "samples" in item.path.parts and item.get_closest_marker("slow") is not None)


LONG = 1.0  # seconds after which a test is worth a look for what it left behind


@pytest.fixture(autouse=True)
def memory_is_given_back():
    """Models hold each other in circles, TensorFlow keeps kernels, its allocator pages: gigabytes in a suite."""
    start = time.monotonic()
    yield
    if time.monotonic() - start > LONG and "keras" in sys.modules:
        sys.modules["keras"].backend.clear_session()
        gc.collect()
        if sys.platform == "linux":
            ctypes.CDLL("libc.so.6").malloc_trim(0)


_SHARED = Path(__file__).resolve().parents[2] / "shared"


def _there(path: Path, what: str) -> Path:
    if not path.exists():
        pytest.skip(f"{what} is not on this machine (looked for {path.name}; MRCNN_TF_DATA names the data folder)")
    return path


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data: `MRCNN_TF_DATA`, or shared/data beside the repository."""
    return _there(Path(os.environ.get("MRCNN_TF_DATA", _SHARED / "data")), "real data")


@pytest.fixture(scope="session")
def coco_mini(data_dir) -> Path:
    """The folder with a small part of COCO 2017: annotations/, train2017/, val2017/."""
    return _there(data_dir / "coco_mini", "COCO-mini")


@pytest.fixture(scope="session")
def nuclei(data_dir) -> Path:
    """The folder with the nuclei: instances_train.json, instances_val.json, train/, val/."""
    return _there(data_dir / "nuclei", "the nuclei data set")


@pytest.fixture(scope="session")
def backbone_weights(data_dir) -> Path:
    """The ImageNet weights of a ResNet-50 in the layout of Keras applications (.npz)."""
    return _there(data_dir / "weights" / "resnet50_imagenet_keras_partial.npz", "the backbone's weights file")


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """The folder with numbers recorded from other implementations."""
    return _there(_SHARED / "reference", "the folder of recorded numbers")


@pytest.fixture(scope="session")
def recorded():
    """What torchvision answered (tests/reference)."""
    path = Path(__file__).resolve().parent / "reference" / "torchvision_ops.npz"
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.fixture(scope="session")
def yx():
    """[x1, y1, x2, y2] or (dx, dy, dw, dh) -> [y1, x1, y2, x2] or (dy, dx, dh, dw), and back."""
    return lambda values: np.ascontiguousarray(values[..., [1, 0, 3, 2]])
