import subprocess
import sys
import textwrap

import pytest
import tensorflow as tf

from mrcnn_tf.training.distribution import global_batch_size, split_cpu, strategy
from mrcnn_tf.training.errors import DistributionError


def _run(code):
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("devices", [None, 1, "1"])
def test_one_device_is_the_default_strategy(devices):
    assert strategy(devices) is tf.distribute.get_strategy()
    assert strategy(devices).num_replicas_in_sync == 1


def test_logical_devices_of_the_cpu_form_a_mirrored_strategy():
    done = _run("""
        import tensorflow as tf
        tf.config.set_visible_devices([], "GPU")
        from mrcnn_tf.training import distribution
        tf.config.list_physical_devices = lambda kind, real=tf.config.list_physical_devices: (
            [] if kind == "GPU" else real(kind)
        )
        made = distribution.strategy(3)
        total = made.reduce("SUM", made.run(lambda: tf.distribute.get_replica_context().replica_id_in_sync_group), None)
        print(type(made).__name__, made.num_replicas_in_sync, int(total))
        print(distribution.strategy("CPU:0,CPU:2").num_replicas_in_sync)
        print(distribution.strategy(2).num_replicas_in_sync)
    """)
    assert done.stdout.split() == ["MirroredStrategy", "3", "3", "2", "2"], done.stderr


def test_a_second_training_of_a_process_exchanges_values_of_other_shapes():
    """TensorFlow remembers the shapes of a strategy's exchanges by their numbers, which a new one would use again."""
    done = _run("""
        import tensorflow as tf
        tf.config.set_visible_devices([], "GPU")
        from mrcnn_tf.training import distribution
        tf.config.list_physical_devices = lambda kind, real=tf.config.list_physical_devices: (
            [] if kind == "GPU" else real(kind)
        )
        distribution.split_cpu(2)
        for size, devices in ((3, 2), (5, 2), (4, "CPU:0,CPU:1")):
            made = distribution.strategy(devices)

            @tf.function
            def total():
                return made.run(lambda: tf.distribute.get_replica_context().all_reduce("SUM", tf.ones([size])))

            print([int(tf.reduce_sum(part)) for part in made.experimental_local_results(total())])
    """)
    assert done.stdout.splitlines() == ["[6, 6]", "[10, 10]", "[8, 8]"], done.stderr


def test_splitting_the_cpu_too_late_says_what_to_do():
    tf.constant(1) + 1
    with pytest.raises(DistributionError, match=r"split_cpu\(4096\) at the start of the program"):
        split_cpu(4096)


@pytest.mark.parametrize("devices", [0, -1, ["GPU:77"], "CPU:0,XPU:1", [], "CPU:0,CPU:0"])
def test_impossible_devices(devices):
    with pytest.raises(DistributionError):
        strategy(devices)


def test_global_batch():
    one = strategy(1)
    assert global_batch_size(one, 2) == 2
    assert global_batch_size(one, 2, batch_size=5) == 5
    with pytest.raises(DistributionError, match="batch of 0 images"):
        global_batch_size(one, 2, batch_size=0)
