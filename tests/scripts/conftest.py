import pytest

from tests.support.commands import ROOT


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    """The folder of the scripts is where their imports look, as when one of them is run."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
