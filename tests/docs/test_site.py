"""The documentation site builds without a warning, its links have targets, and no page loads anything remote."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
from tests.browser import Browser, executable

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
NEEDED = ("sphinx", "myst_parser", "furo", "latex2mathml")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
LOADS = {
    "img": "src",
    "script": "src",
    "link": "href",
    "iframe": "src",
    "video": "src",
    "audio": "src",
    "source": "src",
}

pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"the site is not built: pip install '.[docs]' ({', '.join(MISSING)} missing)"
)


class Page(HTMLParser):
    """The anchors, links and loaded resources of an HTML page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.add(values["href"])
        address = values.get(LOADS.get(tag, ""), "")
        if address and values.get("rel") != "canonical":
            self.loaded.add(address)
        self.loaded |= set(re.findall(r"url\(['\"]?([^'\")]+)", values.get("style", "")))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", out / "doctrees", DOCS, out / "html"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "NO_COLOR": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return out / "html"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text()) for path in sorted(site.rglob("*.html"))}


def test_every_page_is_built_and_is_in_the_navigation_of_the_first_page(site: Path, pages: dict[Path, Page]) -> None:
    built = {page.relative_to(DOCS).with_suffix(".html") for page in PAGES}
    assert built <= {path.relative_to(site) for path in pages}
    listed = {Path(urldefrag(link).url) for link in pages[site / "index.html"].links}
    assert built - {Path("index.html")} <= listed


def test_every_internal_link_has_a_target(pages: dict[Path, Page]) -> None:
    broken = []
    for path, page in pages.items():
        for link in page.links | page.loaded:
            address, anchor = urldefrag(link)
            if re.match(r"[a-z]+:", link):
                continue
            target = (path.parent / unquote(address).partition("?")[0]).resolve() if address else path
            is_anchor_missing = anchor and target in pages and unquote(anchor) not in pages[target].anchors
            if not target.exists() or is_anchor_missing:
                broken.append(f"{path.name}: {link}")
    assert broken == []


def test_no_page_loads_anything_remote(site: Path, pages: dict[Path, Page]) -> None:
    remote = re.compile(r"(https?:)?//")
    assert [(path.name, url) for path, page in pages.items() for url in page.loaded if remote.match(url)] == []
    for path in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", path.read_text()), path


def test_formulas_are_mathml(site: Path) -> None:
    text = (site / "understand" / "loss.html").read_text()
    assert text.count("<math") > 20
    assert "$" not in re.sub(r"<(code|pre|script|style)\b.*?</\1>", "", text, flags=re.S)


def test_the_errors_page_shows_messages_with_their_fix(site: Path) -> None:
    text = (site / "lookup" / "errors.html").read_text()
    assert "prompts are also in the training data" in text.replace(" evaluation", "")
    assert text.count("What to do: ") > 200


@pytest.mark.skipif(executable() is None, reason="no Chromium or Chrome on the path: pages are not opened")
def test_pages_open_in_a_browser_without_a_request_and_fit_a_phone(site: Path) -> None:
    with Browser(width=390) as browser:
        browser.resize(390, 900)
        for page in ("index", "understand/loss", "lookup/errors", "lookup/configuration"):
            browser.open((site / f"{page}.html").as_uri())
            browser.wait_for("document.readyState == 'complete' && document.querySelector('h1')")
            assert browser.value("document.documentElement.scrollWidth <= innerWidth"), page
            if page == "understand/loss":
                assert browser.value("document.querySelector('math').getBoundingClientRect().width") > 5
        assert [url for url in browser.requested() if not url.startswith(("file:", "data:"))] == []
        assert browser.problems() == []
