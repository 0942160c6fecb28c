"""RPN and heads trained apart, and proposals that go from one to the other in a file."""

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf import proposing
from mrcnn_tf.augmented import Augmentation
from mrcnn_tf.config import ConfigError
from mrcnn_tf.data.errors import DataError
from mrcnn_tf.data.pipeline import training_batches
from mrcnn_tf.data.proposals import ProposalFile, with_proposals, write_proposals
from mrcnn_tf.data.shapes import shapes
from mrcnn_tf.evaluation.detect import detect
from mrcnn_tf.model import MaskRCNN
from mrcnn_tf.parts import part_of, weights_of
from mrcnn_tf.proposing import save_proposals
from mrcnn_tf.weights.files import load_weights
from tests.support.tiny import calm, tiny_config


def build(**changes):
    keras.utils.set_random_seed(1)
    model = MaskRCNN(tiny_config(**changes))
    calm(model)
    return model


@pytest.fixture(scope="module")
def data():
    return shapes(5, seed=2)


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def truth_file(data, tmp_path_factory):
    """Proposals that are the objects' own boxes, the first one best."""
    path = tmp_path_factory.mktemp("files") / "truth.h5"
    examples = [data.example(index) for index in range(len(data))]
    found = [(one.image_id, one.boxes, np.linspace(0.9, 0.1, len(one), dtype=np.float32)) for one in examples]
    write_proposals(path, found, "the truth")
    return path


def test_a_file_gives_back_what_was_written(data, truth_file):
    file = ProposalFile(truth_file)
    assert file.identity == "the truth"
    np.testing.assert_array_equal(file.image_ids, data.image_ids)
    for index in (4, 0, 2):
        example = data.example(index)
        boxes, scores = file.of(example.image_id)
        np.testing.assert_array_equal(boxes, example.boxes)
        assert scores[0] == np.float32(0.9)
        np.testing.assert_array_equal(file.of(example.image_id, 1)[0], example.boxes[:1])


def test_proposals_are_scaled_and_mirrored_with_their_image(data, truth_file):
    """Proposals that are the objects' boxes stay what the objects' boxes become."""
    config = tiny_config(input={"shorter_edge": (48, 64)}, training={"parts": ("heads",)})
    flipped = set()
    for batch in training_batches(with_proposals(data, truth_file), config, 2, steps=8):
        assert batch["proposals"].shape == (2, config.rpn.post_nms_train, 4)
        count = batch["boxes"].shape[1]
        np.testing.assert_allclose(batch["proposals"][:, :count], batch["boxes"], atol=1e-3)
        assert not batch["proposals"][:, count:].numpy().any()
        for image_id, boxes, size in zip(*(batch[name].numpy() for name in ("image_id", "boxes", "image_size"))):
            own = data.example(list(data.image_ids).index(image_id))
            plain = own.boxes * np.tile(size / own.size, 2)
            flipped.add(bool(np.abs(plain - boxes[: len(plain)]).max() > 0.1))
    assert flipped == {True, False}


@pytest.mark.parametrize("shrink", [0.0, 1.0])
def test_detecting_on_the_saved_proposals_is_detecting(shrink, data, tmp_path):
    model = build(anchors={"shrink": shrink})
    path = save_proposals(model, data, tmp_path / "own.h5", batch_size=2, progress=False)
    boxes, scores = ProposalFile(path).of(data.image_ids[0])
    assert 30 < len(boxes) <= 40  # as many as training takes, of which detection reads 30
    assert (np.diff(scores) <= 0).all() and (boxes[:, 2:] > boxes[:, :2]).all()
    found = detect(model, with_proposals(data, path), progress=False)
    for image_id, expected in detect(model, data, progress=False).items():
        np.testing.assert_allclose(found[image_id].boxes, expected.boxes, atol=1e-2)
        np.testing.assert_allclose(found[image_id].scores, expected.scores, atol=1e-4)
    with pytest.raises(ConfigError, match="comes with proposals"):
        detect(model, with_proposals(data, path), progress=False, augmentation=Augmentation())


def test_proposals_from_outside_lose_the_pixel_that_objects_lose(data, truth_file):
    """With Matterport's boxes, proposals that are the objects, mirrored or not, have nowhere to be moved to."""
    model = build(anchors={"shrink": 1.0}, training={"parts": ("heads",)})
    for batch in training_batches(with_proposals(data, truth_file), model.config, 2, steps=4):
        batch["seed"] = tf.zeros((2, 2), tf.int32)
        found = model.training_graph({name: batch[name] for name in model.training_graph.input})
        positive = found["roi_classes"].numpy() > 0
        assert positive.any()
        np.testing.assert_allclose(found["roi_targets"].numpy()[positive], 0, atol=1e-4)


def test_saving_goes_on_where_it_was_stopped(model, tmp_path, monkeypatch):
    monkeypatch.setattr(proposing, "PART_IMAGES", 2)
    asked, fails = [], {3}

    class Stopping(type(shapes(1))):
        def example(self, index):
            asked.append(index)
            if index in fails:
                raise DataError(f"image {index} is not there")
            return super().example(index)

    data = shapes(5, seed=2)
    data.__class__ = Stopping
    path = tmp_path / "found.h5"
    with pytest.raises(DataError, match="image 3 is not there"):
        save_proposals(model, data, path, progress=False)
    assert not path.exists()
    fails.clear(), asked.clear()
    save_proposals(model, data, path, progress=False)
    assert sorted(set(asked)) == [2, 3, 4]
    assert not path.with_name("found.h5.parts").exists()
    whole = ProposalFile(save_proposals(model, shapes(5, seed=2), tmp_path / "whole.h5", progress=False))
    for image_id in whole.image_ids:
        np.testing.assert_array_equal(ProposalFile(path).of(image_id)[0], whole.of(image_id)[0])
    asked.clear()
    save_proposals(model, data, path, progress=False)
    assert asked == []
    data.__class__ = Stopping.__mro__[1]
    before = ProposalFile(path).identity
    save_proposals(model, data.subset([1, 0]), path, progress=False)
    assert ProposalFile(path).identity != before and len(ProposalFile(path).image_ids) == 2


def test_what_is_no_file_of_proposals_or_lacks_images(data, truth_file, tmp_path):
    with pytest.raises(DataError, match="nowhere.h5: there is no such file"):
        with_proposals(data, tmp_path / "nowhere.h5")
    (tmp_path / "text.h5").write_text("no")
    with pytest.raises(DataError, match="is no file of proposals"):
        with_proposals(data, tmp_path / "text.h5")
    ids = ", ".join(str(image_id) for image_id in shapes(7, seed=2).image_ids[5:])
    with pytest.raises(DataError, match=rf"no proposals for 2 of the 7 images of shapes \(seed 2\) \(ids {ids}\)"):
        with_proposals(shapes(7, seed=2), truth_file)
    with pytest.raises(ConfigError, match="comes without proposals"):
        training_batches(data, tiny_config(training={"parts": ("heads",)}), 2)
    for wrong in ((), ("rpn", "rpn"), ("masks",)):
        with pytest.raises(ConfigError, match="parts"):
            tiny_config(training={"parts": wrong})


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        ({"boxes": np.zeros((6, 3), np.float32)}, "not of one length"),
        ({"scores": np.zeros(5, np.float32)}, "not of one length"),
        ({"starts": np.array([0, 4, 2, 6])}, "not of one length"),
        ({"starts": np.array([0, 3, 6])}, "not of one length"),
        (
            {"boxes": np.zeros((0, 4), np.float32), "scores": np.zeros(0), "starts": np.zeros(4, int)},
            "not one proposal",
        ),
        ({"boxes": np.full((6, 4), np.nan, np.float32)}, "a proposal of image 1 is no number"),
    ],
)
def test_damaged_files_of_proposals_are_refused(spoil, match, tmp_path):
    path = tmp_path / "damaged.h5"
    boxes = np.tile(np.array([1, 2, 30, 40], np.float32), (2, 1))
    write_proposals(path, [(image_id, boxes, np.ones(2, np.float32)) for image_id in (1, 2, 3)])
    with h5py.File(path, "a") as file:
        for name, values in spoil.items():
            del file[name]
            file[name] = values
    with pytest.raises(DataError, match=match) as caught:
        with_proposals(shapes(3), path).proposals.of(1)
    assert str(path) in str(caught.value)


def test_no_other_file_is_written_over(model, data, tmp_path):
    path = tmp_path / "annotations.json"
    path.write_text("{}")
    with pytest.raises(DataError, match="annotations.json: is there, and is no file of proposals"):
        save_proposals(model, data, path, progress=False)
    assert path.read_text() == "{}"


@pytest.mark.parametrize(("parts", "said"), [(("rpn",), "left out the branches"), (("heads",), "left out the RPN")])
def test_a_part_that_was_not_trained_is_told_when_it_is_used(parts, said, data, truth_file, tmp_path, caplog):
    model = build(training={"parts": parts})
    one = data.subset([0])
    detect(model, with_proposals(one, truth_file), progress=False)
    assert (said in caplog.text) == (parts == ("rpn",))
    caplog.clear()
    save_proposals(model, one, tmp_path / "own.h5", progress=False)
    assert (said in caplog.text) == (parts == ("heads",))
    caplog.clear()
    model._warned_of_parts = False
    detect(model, one, progress=False), detect(model, one, progress=False)
    assert caplog.text.count(said) == 1


RPN_LOSSES = {"rpn_objectness_loss", "rpn_box_loss"}
HEAD_LOSSES = {"box_class_loss", "box_delta_loss", "mask_loss"}


@pytest.mark.parametrize(
    ("parts", "backbone", "losses"), [(("rpn",), True, RPN_LOSSES), (("heads",), False, HEAD_LOSSES)]
)
def test_only_what_is_named_is_trained(parts, backbone, losses, data, truth_file):
    model = build(training={"parts": parts, "train_backbone": backbone})
    before = {part: weights_of(model, part) for part in ("rpn", "heads", "backbone")}
    model.compile()
    batches = training_batches(with_proposals(data, truth_file), model.config, 2, steps=2)
    history = model.fit(batches, verbose=0).history
    assert {name for name in history if name.endswith("_loss")} == losses
    assert history["loss"][0] == pytest.approx(sum(history[name][0] for name in losses), rel=1e-5)
    # The heads' proposals are those given, and these are the objects.
    assert parts == ("rpn",) or history["rpn_recall"] == [1.0]
    moving = {*parts, *(["backbone"] if backbone else [])}
    for part, weights in before.items():
        after = weights_of(model, part)
        assert weights.keys() == after.keys()
        moved = [path for path in weights if not np.array_equal(weights[path], after[path])]
        if part in moving:
            trained = {weight.path for weight in model.trainable_variables if part_of(weight.path, "fpn") == part}
            assert len(moved) > 0.8 * len(trained) > 0
        else:
            assert moved == []


def test_weights_of_a_training_of_other_parts_start_anew(data, truth_file, tmp_path):
    """Not its momenta, which are of other weights, nor its step, where the schedule would go on."""
    first = build(training={"parts": ("rpn",)})
    first.compile()
    first.fit(training_batches(data, first.config, 2, steps=1), verbose=0)
    first.save(tmp_path / "model.keras")
    second = build(training={"parts": ("heads",)})
    second.compile()
    load_weights(second, tmp_path / "model.keras")
    for part in ("rpn", "heads", "backbone"):
        expected, found = weights_of(first, part), weights_of(second, part)
        assert all(np.array_equal(expected[path], found[path]) for path in expected)
    assert int(second.optimizer.iterations) == 0
    second.fit(training_batches(with_proposals(data, truth_file), second.config, 2, steps=1), verbose=0)
    assert int(second.optimizer.iterations) == 1


def test_the_parts_of_a_model():
    assert [part_of(name, "fpn") for name in ("stem/kernel", "res5_block1_conv1", "fpn_output2")] == ["backbone"] * 3
    assert part_of("rpn/conv/kernel", "fpn") == "rpn"
    assert {part_of(name, "c4") for name in ("res5_block1_conv1/kernel", "box_classes", "mask_deconv")} == {"heads"}
    assert part_of("res4_block1_conv1/kernel", "c4") == "backbone"
