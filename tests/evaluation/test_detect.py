"""Detection on a whole data set, with a model whose answers are known."""

import gc
import time
import weakref

import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.config import Config
from mrcnn_tf.data.errors import DataError
from mrcnn_tf.data.schema import Dataset, Example
from mrcnn_tf.evaluation.coco import evaluate_coco
from mrcnn_tf.evaluation.detect import detect, detected_part
from mrcnn_tf.reporting import evaluation_report
from mrcnn_tf.training.validation import coco_measure

SIZES = [(40, 60), (64, 48), (50, 50)]
IMAGE_IDS = [7, 3, 12]


class Squares(Dataset):
    """One bright object on each black image: the lower right quarter."""

    def __init__(self, missing=None):
        super().__init__("squares", ("thing", "other"), (5, 9), np.array(IMAGE_IDS), np.array(SIZES))
        self.missing = missing

    def example(self, index):
        height, width = SIZES[index]
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[height // 2 :, width // 2 :] = 50 * (index + 1)
        y, x = height // 2, width // 2
        return Example(
            image_id=IMAGE_IDS[index],
            path="/nowhere/squares.png" if index == self.missing else None,
            pixels=None if index == self.missing else pixels,
            size=SIZES[index],
            boxes=np.array([[y, x, height, width]], np.float32),
            classes=np.array([2], np.int32),
            crowd=np.array([False]),
            areas=np.array([(height - y) * (width - x)], np.float32),
            segmentations=([[x, y, width, y, width, height, x, height]],),
        )


class Knowing:
    """Answers the lower right quarter of every image, with the largest pixel as its score, and some padding."""

    config = Config(num_classes=2, class_names=("thing", "other")).replace(
        input__shorter_edge=(96,), input__longer_edge=160
    )

    def __init__(self):
        self.traces = 0

    def __call__(self, inputs, training):
        assert training is False
        self.traces += 1
        size = tf.cast(inputs["image_size"], tf.float32)
        box = tf.concat([size / 2, size], axis=1)
        count = tf.shape(size)[0]
        return {
            "boxes": tf.stack([box, tf.zeros_like(box)], axis=1),
            "classes": tf.tile([[2, 0]], [count, 1]),
            "scores": tf.stack([tf.reduce_max(inputs["image"], [1, 2, 3]) / 255.0, tf.zeros([count])], axis=1),
            "masks": tf.ones([count, 2, 28, 28]),
        }


@pytest.mark.parametrize("batch_size", [1, 2])
def test_every_image_is_answered_in_its_own_pixels(batch_size, capsys):
    model, dataset = Knowing(), Squares()
    found = detect(model, dataset, batch_size, progress=False)
    assert list(found) == IMAGE_IDS
    for place, (image_id, size) in enumerate(zip(IMAGE_IDS, SIZES)):
        (one,) = found[image_id]
        assert one.names == ["other"] and one.image_size == size
        np.testing.assert_allclose(one.boxes, [[size[0] / 2, size[1] / 2, *size]], atol=1e-3)
        assert one.scores[0] == pytest.approx(50 * (place + 1) / 255, abs=1e-3)
        assert one.mask_crops is None  # run lengths are kept, not crops
        # All of the quarter but its corner pixel, where two half cells fade.
        assert one.masks.sum() == pytest.approx(size[0] * size[1] / 4, abs=4)
    metrics = evaluate_coco(dataset, found).metrics
    assert metrics["box/AP"] == pytest.approx(1.0) and metrics["mask/AP"] == pytest.approx(1.0)
    assert capsys.readouterr().err == ""


def test_a_progress_bar_counts_images(capsys):
    detect(Knowing(), Squares())
    assert "3/3" in capsys.readouterr().err


def test_the_model_is_traced_once_and_not_kept_alive():
    model = Knowing()
    for _ in range(2):
        detect(model, Squares(), progress=False)
    assert model.traces == 1
    reference = weakref.ref(model)
    del model
    for _ in range(50):  # a thread that made ready the last batch may take its time to end
        gc.collect()
        if reference() is None:
            return
        time.sleep(0.1)
    pytest.fail("the model is still alive")


def test_another_number_of_classes_is_refused():
    dataset = Squares()
    dataset.class_names = ("thing",)
    with pytest.raises(ValueError, match="the data set has 1 classes, the model 2"):
        detect(Knowing(), dataset)


def test_an_unreadable_image_is_named_or_skipped():
    dataset = Squares(missing=1)
    with pytest.raises(DataError, match="squares.png"):
        detect(Knowing(), dataset, progress=False)
    dataset.skip_bad = True
    assert list(detect(Knowing(), dataset, progress=False)) == [7, 12]
    assert dataset.problems.total == 1


def test_objects_of_an_unreadable_image_are_not_missed(tmp_path):
    dataset = Squares(missing=1)
    assert detected_part(dataset, {7: None, 3: None, 12: None}) is dataset
    dataset.skip_bad = True
    report = evaluation_report(Knowing(), dataset, tmp_path, progress=False)
    assert report.image_count == report.object_count == 2
    assert report.metrics["box/AP"] == report.metrics["box/AR1"] == pytest.approx(1.0)
    during_training = coco_measure(dataset, tmp_path)(Knowing())
    assert during_training.image_count == 2 and during_training.metrics["box/AP"] == pytest.approx(1.0)
