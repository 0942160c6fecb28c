import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.geometry.crops import crop_and_average


def crops(rng, images, height, width, channels, boxes):
    feature = rng.normal(size=(images, height, width, channels)).astype(np.float32)
    low = rng.uniform(-0.2, 0.8, (boxes, 2))
    corners = np.concatenate([low, low + rng.uniform(0.0, 0.5, (boxes, 2))], axis=1).astype(np.float32)
    return feature, corners, rng.integers(0, images, boxes).astype(np.int32)


def by_hand(feature, corners, image_index, size, samples):
    """The same by loops, in float64; the function that numpy's gradient is taken of."""
    images, height, width, channels = feature.shape
    output = np.zeros((len(corners), size, size, channels))
    grid = size * samples

    def positions(low, high, length):
        low, high = low * (length - 1), high * (length - 1)
        return [0.5 * (low + high)] if grid == 1 else [low + k * (high - low) / (grid - 1) for k in range(grid)]

    for n, (y1, x1, y2, x2) in enumerate(corners.astype(np.float64)):
        image = feature[image_index[n]]
        for i, y in enumerate(positions(y1, y2, height)):
            for j, x in enumerate(positions(x1, x2, width)):
                if not (0 <= y <= height - 1 and 0 <= x <= width - 1):
                    continue
                top, left = int(y), int(x)
                below, right = min(top + 1, height - 1), min(left + 1, width - 1)
                fy, fx = y - top, x - left
                value = (1 - fy) * ((1 - fx) * image[top, left] + fx * image[top, right])
                value = value + fy * ((1 - fx) * image[below, left] + fx * image[below, right])
                output[n, i // samples, j // samples] += value / samples**2
    return output


@pytest.mark.parametrize(("size", "samples"), [(3, 2), (4, 1), (1, 1), (2, 3)])
def test_values_and_gradient_by_hand(size, samples):
    feature, corners, index = crops(np.random.default_rng(size), 2, 6, 7, 3, 9)
    weights = np.random.default_rng(1).normal(size=(9, size, size, 3))
    variable = tf.constant(feature)
    with tf.GradientTape() as tape:
        tape.watch(variable)
        output = crop_and_average(variable, corners, index, size, samples)
        total = tf.reduce_sum(output * tf.constant(weights, tf.float32))
    np.testing.assert_allclose(output, by_hand(feature, corners, index, size, samples), atol=1e-5)
    gradient = tape.gradient(total, variable).numpy()
    # The function is linear in the map, so a change of one cell changes it by the gradient there, exactly.
    rng = np.random.default_rng(2)
    base = np.sum(by_hand(feature, corners, index, size, samples) * weights)
    for _ in range(40):
        cell = tuple(rng.integers(0, side) for side in feature.shape)
        changed = feature.astype(np.float64)
        changed[cell] += 1.0
        difference = np.sum(by_hand(changed, corners, index, size, samples) * weights) - base
        assert gradient[cell] == pytest.approx(difference, abs=1e-5)


def test_the_gradient_of_overlapping_boxes_loses_nothing():
    # Hundreds of boxes on the same cells: TensorFlow's own gradient loses sums here, between its threads.
    rng = np.random.default_rng(0)
    feature, corners, index = crops(rng, 1, 12, 14, 64, 400)
    upstream = rng.normal(size=(400, 7, 7, 64)).astype(np.float32)

    def gradient(upstream, corners, index):
        variable = tf.constant(feature)
        with tf.GradientTape() as tape:
            tape.watch(variable)
            total = tf.reduce_sum(crop_and_average(variable, corners, index, 7, 2) * upstream)
        return tape.gradient(total, variable).numpy()

    whole = gradient(upstream, corners, index)
    apart = sum(
        gradient(upstream[n : n + 1], corners[n : n + 1], index[n : n + 1]).astype(np.float64) for n in range(400)
    )
    assert np.linalg.norm(whole - apart) < 1e-5 * np.linalg.norm(apart)
    np.testing.assert_array_equal(whole, gradient(upstream, corners, index))


def test_no_boxes():
    feature = tf.ones([1, 4, 4, 2])
    with tf.GradientTape() as tape:
        tape.watch(feature)
        output = crop_and_average(feature, tf.zeros([0, 4]), tf.zeros([0], tf.int32), 3, 2)
        total = tf.reduce_sum(output)
    assert output.shape == (0, 3, 3, 2)
    np.testing.assert_array_equal(tape.gradient(total, feature), np.zeros((1, 4, 4, 2)))
