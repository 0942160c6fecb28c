from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]


def test_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.setenv("SHAPES_STEPS", "4")
    monkeypatch.setenv("SHAPES_IMAGES", "4")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(ROOT / "samples" / "shapes" / "shapes.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs stay out of the repository"
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 4  # ground truth, curves, predictions, proposals
    text = "".join(output["text"] for output in outputs if output.output_type == "stream")
    assert "4 images" in text and "mask" in text  # the table of measures
    assert "'masks': (1, 20, 28, 28)" in text  # what the SavedModel answers
    assert [path.name for path in tmp_path.glob("shapes-*/*")]
