"""Which images form which training batch.

Shape letter: B images of a batch.
"""

from __future__ import annotations

import threading

import numpy as np

from mrcnn_tf.config import Config
from mrcnn_tf.data.errors import DataError
from mrcnn_tf.data.schema import Dataset

_BINS_PER_OCTAVE = 3


class BatchPlan:
    """Which images form which training batch: a function of the seed and the step alone.

    An epoch shuffles all images, groups those of similar aspect ratio so that little of a batch is
    padding, and shuffles the batches. The images that an epoch lacks for its last batch are drawn
    from its own beginning, so that every epoch shows every image and has `steps_per_epoch` batches.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int = 0,
        drop_empty: bool = False,
        by_aspect: bool = True,
        min_keypoints: int = 0,
    ):
        """Plans batches of `batch_size`; `drop_empty` and `min_keypoints` leave out images as in `DataConfig`.

        `by_aspect` false leaves the aspect ratios mixed, which costs nothing where all images get one canvas.

        Raises:
            DataError: no image is left.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size}: at least 1")
        keep = np.arange(len(dataset))
        if drop_empty:
            keep = keep[dataset.object_counts() > 0]
        asked = "an object" if drop_empty else ""
        if min_keypoints and dataset.keypoint_names:
            keep = keep[dataset.keypoint_counts()[keep] >= min_keypoints]
            asked = f"data.min_keypoints = {min_keypoints}"
        if len(keep) == 0:
            reason = f"no image with {asked}" if asked else "no image"
            raise DataError(f"{dataset.name}: {reason} to train on; check the annotations", "nothing to train on")
        self.batch_size = batch_size
        self.seed = seed
        self.steps_per_epoch = -(-len(keep) // batch_size)
        self._ids = dataset.image_ids
        self._keep = keep
        aspect = np.log2(dataset.sizes[keep, 1] / dataset.sizes[keep, 0])
        self._bins = np.round(aspect * _BINS_PER_OCTAVE * by_aspect).astype(np.int64)
        self._epochs: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    @classmethod
    def of(cls, dataset: Dataset, config: Config, batch_size: int, seed: int) -> BatchPlan:
        """The plan of a training by `config`."""
        data = config.data
        return cls(dataset, batch_size, seed, data.drop_empty, not data.crop, data.min_keypoints)

    def indices(self, step: int) -> np.ndarray:
        """[B] positions in the data set of the images of batch `step` (0, 1, ...)."""
        epoch, row = divmod(int(step), self.steps_per_epoch)
        with self._lock:
            if epoch not in self._epochs:
                if len(self._epochs) > 2:
                    self._epochs.pop(min(self._epochs))
                self._epochs[epoch] = self._plan(epoch)
            return self._epochs[epoch][row]

    def image_ids(self, step: int) -> list[int]:
        """The ids of the images of batch `step`."""
        return [int(i) for i in self._ids[self.indices(step)]]

    def _plan(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self._keep))
        order = np.resize(order, self.steps_per_epoch * self.batch_size)  # repeats from the beginning
        order = order[np.argsort(self._bins[order], kind="stable")]
        batches = order.reshape(self.steps_per_epoch, self.batch_size)
        return self._keep[batches[rng.permutation(len(batches))]]
