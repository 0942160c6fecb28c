"""scripts/environment.sh: which Python is chosen, what is made again, and what is said when it cannot be."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.support.commands import ROOT

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash on this machine")


def shell(command: str, path: str | None = None, **variables: object) -> subprocess.CompletedProcess:
    """Runs a bash command after sourcing the script; `path` stands first in the search path, or alone."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "VENV")}
    environment.update({name: str(value) for name, value in variables.items()})
    if path is not None:
        environment["PATH"] = path
    text = f'source "{ROOT}/scripts/environment.sh"; {command}'
    return subprocess.run(["bash", "-c", text], env=environment, capture_output=True, text=True, timeout=120)


def fake_python(folder, name: str, version: str):
    """An interpreter that knows nothing but its version."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f'#!/bin/sh\n[ "$1" = -c ] && echo {version} && exit 0\nexit 3\n')
    path.chmod(0o755)
    return path


def test_a_python_that_is_not_there(tmp_path):
    done = shell("make_environment ''", PYTHON="python3.99", VENV=tmp_path / "env")
    assert done.returncode == 1
    assert done.stderr.startswith("error: PYTHON=python3.99 cannot be run.")


@pytest.mark.parametrize("version", ["3.9", "3.14", "2.7"])
def test_a_python_that_tensorflow_has_no_packages_for(version, tmp_path):
    python = fake_python(tmp_path / "bin", "python", version)
    done = shell("make_environment ''", PYTHON=python, VENV=tmp_path / "env")
    assert done.returncode == 1
    assert f"is Python {version}; needed is one of 3.10 3.11 3.12 3.13" in done.stderr
    assert not (tmp_path / "env").exists()


def test_the_first_python_that_fits_is_taken(tmp_path):
    fake_python(tmp_path / "bin", "python3", "3.14")
    fake_python(tmp_path / "bin", "python3.12", "3.12")
    done = shell('choose_python; echo "chosen $PYTHON"', path=f"{tmp_path / 'bin'}:/usr/bin:/bin")
    # Other interpreters of the machine come after python3.12 in the order of trying, or are python3.13.
    assert done.returncode == 0 and done.stdout.strip() in ("chosen python3.12", "chosen python3.13")


def test_no_python_fits(tmp_path):
    fake_python(tmp_path / "bin", "python3", "3.14")
    for tool in ("bash", "dirname"):
        os.symlink(shutil.which(tool), tmp_path / "bin" / tool)
    done = shell("choose_python", path=str(tmp_path / "bin"))
    assert done.returncode == 1
    assert "no fitting Python was found: python3 is 3.14" in done.stderr
    assert "PYTHON=/path/to/python3.12" in done.stderr


def test_a_python_that_cannot_make_environments(tmp_path):
    python = fake_python(tmp_path / "bin", "python3", "3.12")
    done = shell("make_environment ''", PYTHON=python, VENV=tmp_path / "env")
    assert done.returncode == 1
    assert "could not make a virtual environment" in done.stderr and "apt-get install python3-venv" in done.stderr


def test_a_folder_that_is_no_environment_is_left_alone(tmp_path):
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "precious.txt").write_text("kept")
    done = shell("make_environment ''", PYTHON=sys.executable, VENV=tmp_path / "env")
    assert done.returncode == 1 and "is no Python environment" in done.stderr
    assert (tmp_path / "env" / "precious.txt").read_text() == "kept"


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """An environment without anything in it."""
    folder = tmp_path_factory.mktemp("env") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=120)
    return folder


@pytest.mark.parametrize(("made_for", "wanted"), [("installed", ""), ("installed-dev", ""), ("installed-dev", "dev")])
def test_what_is_installed_is_not_installed_again(made_for, wanted, environment):
    for name in ("installed", "installed-dev"):
        (environment / name).unlink(missing_ok=True)
    done = shell(f'fingerprint > "$VENV/{made_for}"; make_environment "{wanted}"', VENV=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"== environment: {environment} (as installed before)\n"


@pytest.mark.parametrize(("stamp", "wanted"), [("installed-dev", "dev"), ("installed", "dev")])
def test_another_setup_or_more_extras_are_installed(stamp, wanted, environment):
    for name in ("installed", "installed-dev"):
        (environment / name).unlink(missing_ok=True)
    write = "echo old" if stamp == "installed-dev" else "fingerprint"
    done = shell(f'{write} > "$VENV/{stamp}"; make_environment "{wanted}"', VENV=environment)
    # There is no pip in it, so that the attempt is all there is to see.
    assert "installing TensorFlow and the rest" in done.stdout
    assert done.returncode == 1 and "the installation failed" in done.stderr


@pytest.mark.parametrize("script", ["scripts/quickstart", "scripts/test"])
def test_help(script, tmp_path):
    done = subprocess.run([ROOT / script, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: ") and "PYTHON=python3.12" in done.stdout


@pytest.mark.parametrize("script", ["scripts/environment.sh", "scripts/quickstart", "scripts/test", ".ci/run"])
def test_syntax(script):
    subprocess.run(["bash", "-n", ROOT / script], check=True, timeout=60)
