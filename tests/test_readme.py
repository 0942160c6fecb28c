"""What the README promises is there: names, options, presets and values."""

import ast
import re

import pytest

import mrcnn_tf
from mrcnn_tf import presets
from tests.support.commands import ROOT

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
SHELL = "\n".join(re.findall(r"```sh\n(.*?)```", TEXT, flags=re.DOTALL)).replace("\\\n", " ")


def test_python_examples_use_names_that_exist():
    assert len(PYTHON) == 6
    for node in ast.walk(ast.parse("\n".join(PYTHON))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "mrcnn_tf":
            assert hasattr(mrcnn_tf, node.attr), node.attr


COMMANDS = sorted(set(re.findall(r"^(?:scripts|samples)/\S+\.py", SHELL, flags=re.MULTILINE)))


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_know_the_options_that_are_shown(command):
    source = (ROOT / command).read_text(encoding="utf-8")
    lines = [line.split("#")[0] for line in SHELL.splitlines() if line.startswith(command)]
    for option in re.findall(r"(--[a-z-]+)", " ".join(lines)):
        assert f'"{option}"' in source, option


def test_values_in_the_table_exist_with_the_default_shown():
    config = mrcnn_tf.Config()
    rows = re.findall(r"^\| (`[a-z_]+\..*?) \| (.*?) \|", TEXT.split("| value | default |")[1], flags=re.MULTILINE)
    assert len(rows) >= 12
    for names, defaults in rows:
        dotted = re.findall(r"`([a-z_.]+)`", names)
        values = [getattr(getattr(config, name.split(".")[0]), name.split(".")[1]) for name in dotted]
        for shown, value in zip(defaults.split(", "), values):
            if isinstance(value, tuple) and len(value) == 1:
                value = value[0]
            if isinstance(value, (bool, int, float, str)):
                assert shown.split()[0] == str(value).lower(), names


def test_presets_are_all_told():
    for name in presets.names():
        assert f"`{name}`" in TEXT
