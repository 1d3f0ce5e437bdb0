"""The notebook runs from top to bottom where Jupyter starts it, in its own folder."""

import html
import re

import nbformat
from nbclient import NotebookClient

from tests.viz.test_explorer import data_of
from tests.world import ROOT

NOTEBOOK = ROOT / "viz/model_view.ipynb"


def test_no_outputs_are_stored():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.get("outputs") for cell in notebook.cells)


def test_the_notebook_runs_and_shows_the_page(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    shown = notebook.cells[-1].outputs[0].data["text/html"]
    data = data_of(html.unescape(re.search(r'srcdoc="([^"]*)"', shown)[1]))
    assert (data["layers"], data["heads"]) == (2, 4)
    assert data["tokens"] == ["[CLS]", "the", "person", "left", "of", "the", "green", "car", "[SEP]"]
    assert data["image"] is not None
    assert len(data["regions"]) > 1
