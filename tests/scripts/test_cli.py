import errno
import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf import presets
from mrcnn_tf.atomic import write_atomically
from tests.support.commands import ROOT

SCRIPTS = (
    *("train", "train_alternating", "save_proposals", "evaluate", "predict", "export", "convert_weights", "benchmark"),
)


@pytest.fixture(scope="module")
def cli():
    return module_of("_cli")


def module_of(name):
    spec = importlib.util.spec_from_file_location(f"{name}_under_test", ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_overrides_are_json_or_python_or_text(cli):
    given = ["input.shorter_edge=640,800", "backbone.norm=group", "data.flip=false", "training.learning_rate=1e-3"]
    given += ["anchors.sizes=[[8],[16],[32],[64],[128]]", "training.decay_steps=()", "class_names=('a', 'b')"]
    assert cli.parse_overrides(given) == {
        "input.shorter_edge": (640, 800),
        "backbone.norm": "group",
        "data.flip": False,
        "training.learning_rate": 0.001,
        "anchors.sizes": [[8], [16], [32], [64], [128]],
        "training.decay_steps": (),
        "class_names": ("a", "b"),
    }


def test_overrides_change_a_config(cli):
    config = presets.preset("shapes").replace(**cli.parse_overrides(["input.shorter_edge=64,96", "box_head.fc=512"]))
    assert config.input.shorter_edge == (64, 96)
    assert config.box_head.fc == (512,)


@pytest.mark.parametrize("text", ["shorter_edge", "=3", ""])
def test_what_is_no_override_is_refused(cli, text):
    with pytest.raises(cli.UsageError, match="section.field=value"):
        cli.parse_overrides([text])


def test_too_little_memory_is_told_in_a_line(cli, capsys):
    def main():
        tf.function(lambda rows: tf.zeros([rows, 1024, 1024, 1024]), autograph=False)(tf.constant(1 << 20))

    with pytest.raises(SystemExit, match="1"):
        cli.run(main)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: out of memory (CPU:0: a tensor of shape [1048576,1024,1024,1024] did not fit); for")
    assert "training.images_per_device=1" in line

    def other():
        raise tf.errors.ResourceExhaustedError(None, None, "too many open files")

    with pytest.raises(tf.errors.ResourceExhaustedError):
        cli.run(other)


def test_help_knows_every_preset():
    told = dict(line.strip().split("  ", 1) for line in module_of("_presets").PRESETS.splitlines()[1:])
    assert {name: what.strip() for name, what in told.items()} == {
        name: presets.describe(name) for name in presets.names()
    }


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_answers_at_once_and_shows_examples(script):
    # -X importtime lists every module: TensorFlow would take seconds.
    command = [sys.executable, "-X", "importtime", str(ROOT / "scripts" / f"{script}.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "examples:" in done.stdout and f"scripts/{script}.py" in done.stdout
    assert "tensorflow" not in done.stderr


def test_the_peak_of_memory_is_of_the_process_itself():
    # The counters of the system hand a process the peak of the one that started it.
    ours = np.ones(40_000_000)
    code = "import _cli; before = _cli.peak_memory(); bytearray(100_000_000); print(before, _cli.peak_memory())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "scripts", capture_output=True, text=True)
    before, after = (int(text) for text in done.stdout.split())
    assert 0 < before < 100e6 < after < 200e6 < ours.nbytes


def test_a_full_disk_is_told_with_the_remedy(cli, tmp_path, capsys):
    def write():
        def full(path):
            raise OSError(errno.ENOSPC, "No space left on device")

        write_atomically(tmp_path / "arrays.npz", full)

    with pytest.raises(SystemExit) as ended:
        cli.run(write)
    assert ended.value.code == 2
    told = "No space left on device; free some space, then give the same command again"
    assert capsys.readouterr().err == f"error: {tmp_path / 'arrays.npz'}: {told}\n"


def test_a_file_that_cannot_be_put_in_its_place_leaves_nothing(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match="folder"):
        write_atomically(tmp_path / "folder", lambda name: name.write_text("text"))
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
