import html
import re

import pytest

from tests.viz.test_explorer import data_of
from tests.world import ROOT

pytestmark = pytest.mark.integration

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOK = ROOT / "viz/model_view.ipynb"


def test_notebook_has_no_stored_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.get("outputs") for cell in notebook.cells)


@pytest.mark.integration
def test_notebook_runs_and_shows_page(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(NOTEBOOK.parent)}}  # Jupyter starts in the notebook's folder
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    output = notebook.cells[-1].outputs[0].data["text/html"]
    data = data_of(html.unescape(re.search(r'srcdoc="([^"]*)"', output)[1]))
    assert (data["layers"], data["heads"]) == (2, 4)
    assert data["tokens"] == ["[CLS]", "the", "person", "left", "of", "the", "green", "car", "[SEP]"]
    assert data["image"] is not None
    assert len(data["regions"]) > 1
