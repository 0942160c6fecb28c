"""The four steps at a tiny size: what each trains and begins with, and the one model that comes of them."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest

from mrcnn_tf.config import ConfigError
from mrcnn_tf.data.proposals import ProposalFile
from mrcnn_tf.data.shapes import shapes
from mrcnn_tf.parts import weights_of
from mrcnn_tf.training import alternating
from mrcnn_tf.training.errors import DistributionError
from tests.support.tiny import tiny_config

PARTS = ("backbone", "rpn", "heads")


@pytest.mark.slow
def test_four_steps_end_in_one_model_with_shared_features(tmp_path, monkeypatch):
    config = tiny_config(
        branches=(), training={"steps": 2, "images_per_device": 2, "evaluate_every": 0, "checkpoint_every": 1}
    )
    train_set, val_set = shapes(4, (64, 64), seed=0), shapes(2, (64, 64), seed=1)
    weights, begun, stops = {}, {}, {"3-rpn"}

    def train(config, train_set, val_set, run_dir, **options):
        if run_dir.name in stops:
            raise KeyboardInterrupt
        result = real_train(config, train_set, val_set, run_dir, **options)
        weights[run_dir.name] = {part: weights_of(result.model, part) for part in PARTS}
        begun[run_dir.name] = result.resumed_from
        assert (train_set.proposals is None) == (val_set.proposals is None) == ("rpn" in config.training.parts)
        return result

    real_train = alternating.train
    monkeypatch.setattr(alternating, "train", train)
    with pytest.raises(KeyboardInterrupt):
        alternating.train_alternating(config, train_set, val_set, tmp_path, verbose=0)
    first = ProposalFile(tmp_path / "1-rpn" / "train.proposals.h5")
    np.testing.assert_array_equal(first.image_ids, train_set.image_ids)
    stops.clear()
    result = alternating.train_alternating(config, train_set, val_set, tmp_path, verbose=0)
    assert begun == {"1-rpn": 2, "2-heads": 2, "3-rpn": 0, "4-heads": 0}  # the first two were done already

    # What each step left as it was, and what it moved.
    assert same(weights["3-rpn"]["backbone"], weights["2-heads"]["backbone"])
    assert same(weights["4-heads"]["backbone"], weights["2-heads"]["backbone"])
    assert not same(weights["1-rpn"]["backbone"], weights["2-heads"]["backbone"])
    assert same(weights["3-rpn"]["heads"], weights["2-heads"]["heads"])
    assert same(weights["4-heads"]["rpn"], weights["3-rpn"]["rpn"])
    assert not same(weights["3-rpn"]["rpn"], weights["2-heads"]["rpn"])
    assert not same(weights["4-heads"]["heads"], weights["3-rpn"]["heads"])
    final = {part: weights_of(result.model, part) for part in PARTS}
    assert all(same(final[part], weights["4-heads"][part]) for part in PARTS)

    # One model that needs nothing but images, and trains on as a whole.
    assert result.model.config.training.parts == ("rpn", "heads")
    reloaded = keras.saving.load_model(tmp_path / "model.keras")
    found = reloaded.predict_images([val_set.example(0).pixels])[0]
    expected = result.model.predict_images([val_set.example(0).pixels])[0]
    np.testing.assert_allclose(found.boxes, expected.boxes, rtol=1e-5, atol=1e-5)  # two compilations
    assert len(found) > 0
    assert set(result.histories) == set(alternating.STEPS)
    assert "rpn_box_loss" in result.histories["3-rpn"] and "box_class_loss" in result.histories["4-heads"]


def same(first, second):
    return all(np.array_equal(first[path], second[path]) for path in first)


def test_a_backbone_that_moved_is_told():
    with pytest.raises(RuntimeError, match="the backbone of step 2 is not that of the last model any more: stem"):
        alternating._check_same({"stem": np.zeros(1), "b": np.ones(2)}, {"stem": np.ones(1), "b": np.ones(2)}, BACKBONE)


class Train:
    """Stands in for `train`: a step counts what it has done, in its folder, and remembers how it was called."""

    def __init__(self):
        self.done, self.anew = {}, []

    def __call__(self, config, train_set, val_set, run_dir, resume, **options):
        before = self.done.get(run_dir.name, 0) if resume else 0
        if not resume:
            self.anew.append(run_dir.name)
        self.done[run_dir.name] = config.training.steps
        return SimpleNamespace(model=run_dir.name, history={}, resumed_from=before, steps=config.training.steps)


def test_steps_after_one_that_trained_further_start_anew(tmp_path, monkeypatch):
    """Their checkpoints are of another backbone and of other proposals."""
    train = Train()
    monkeypatch.setattr(alternating, "train", train)
    monkeypatch.setattr(alternating, "_propose", lambda model, sets, *_: sets)
    monkeypatch.setattr(alternating, "weights_of", lambda *_: {})
    monkeypatch.setattr(alternating, "_save", lambda *_: None)

    def call(steps, **options):
        train.anew.clear()
        alternating.train_alternating(tiny_config(training__steps=steps), None, run_dir=tmp_path, **options)
        return list(train.anew)

    call(5)
    assert call(5) == []
    assert call(7) == list(alternating.STEPS[1:])
    train.done["3-rpn"] = 2  # it was stopped there
    assert call(7) == ["4-heads"]
    assert call(7, resume=False) == list(alternating.STEPS)


def test_steps_after_one_that_trained_further_in_an_earlier_call_start_anew_too(tmp_path, monkeypatch):
    train, stops = Train(), []

    def propose(model, sets, *_):
        if model in stops:
            raise KeyboardInterrupt
        return sets

    monkeypatch.setattr(alternating, "train", train)
    monkeypatch.setattr(alternating, "_propose", propose)
    monkeypatch.setattr(alternating, "weights_of", lambda model, part: {part: np.array(train.done[model])})
    monkeypatch.setattr(alternating, "_save", lambda *_: None)

    def call(steps):
        train.anew.clear()
        alternating.train_alternating(tiny_config(training__steps=steps), None, run_dir=tmp_path)
        return list(train.anew)

    call(5)
    for steps, stopped, later in ((7, "1-rpn", ["2-heads", "3-rpn", "4-heads"]), (9, "3-rpn", ["4-heads"])):
        stops[:] = [stopped]
        with pytest.raises(KeyboardInterrupt):  # while it writes the proposals
            call(steps)
        stops.clear()
        assert call(steps) == later
        assert call(steps) == []


def test_several_machines_and_single_parts_are_refused(monkeypatch, tmp_path):
    for values in ({"parts": ("rpn",)}, {"train_backbone": False}):
        with pytest.raises(ConfigError, match="set training.parts and training.train_backbone themselves"):
            alternating.train_alternating(tiny_config(training=values), None, run_dir=tmp_path)
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["a:1", "b:1"]}}')
    with pytest.raises(DistributionError, match="one machine only: start them without srun and TF_CONFIG"):
        alternating.train_alternating(tiny_config(), None)


BACKBONE = "the backbone of step 2"
