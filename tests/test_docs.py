import re

import pytest

from tests.world import ROOT

PAGES = [page for glob in ("*.md", "[!.]*/*.md", "model/*/*.md") for page in sorted(ROOT.glob(glob))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_page_names_existing_files(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)|<img src=\"([^\"]+)\"", text)
    assert [link for pair in links for link in pair if link and not (page.parent / link).exists()] == []
    modules = [name.replace(".", "/") + ".py" for name in re.findall(r"python -m ([a-z_]+\.[a-z_.]+)", text)]
    files = re.findall(r"(?:python|\./|`)((?:scripts|[a-z]+)/\w+\.(?:py|sh))\b", text) + modules
    assert [name for name in files if not (ROOT / name).exists()] == []
