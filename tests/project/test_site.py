"""The docs as a site (mkdocs.yml and its hooks): built strict, and held against the files that it is made of."""

import inspect
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from conftest import ROOT
from markdown_it import MarkdownIt

import qwen3llada_jax as q

pytestmark = pytest.mark.slow
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *(f"docs/{p.name}" for p in sorted(ROOT.glob("docs/*.md")))]
SHOWN = ("h1", "h2", "h3", "p", "li", "ul", "ol", "table", "td", "th", "pre", "img", "em", "strong", "a")
FETCHED = {"script": "src", "img": "src", "iframe": "src", "link": "href"}


def build(checkout: Path, into: Path) -> subprocess.CompletedProcess:
    """`make docs`, into a folder of the test's own."""
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", into],
        check=False, cwd=checkout, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Page(HTMLParser):
    """The tags of a page, its words, its ids, what it links to and what it fetches; not a heading's link to itself."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.words = ""
        self._is_own_link = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.ids |= {values.get("id"), values.get("name")} - {None}
        self._is_own_link = tag == "a" and values.get("class") == "headerlink"
        self.tags[tag] += not self._is_own_link
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if values.get(FETCHED.get(tag, "")) and values.get("rel") not in ("canonical", "prev", "next"):
            self.fetched.append(values[FETCHED[tag]])

    def handle_data(self, data):
        self.words += "" if self._is_own_link else data

    def handle_endtag(self, tag):
        self._is_own_link = False


def html_of(page: str, site: Path) -> str:
    return (site / page.replace("README.md", "index.md").replace(".md", ".html")).read_text()


@pytest.mark.parametrize("page", PAGES)
def test_a_page_says_on_the_site_what_it_says_on_github(site, page):
    """Held against markdown-it with GitHub's extensions: the site's Markdown has other rules for lists and tables."""
    there = Page(MarkdownIt("gfm-like", {"linkify": False}).render((ROOT / page).read_text()))
    here = Page(re.search(r"<article[^>]*>(.*?)</article>", html_of(page, site), re.S)[1])
    assert {tag: here.tags[tag] for tag in SHOWN} == {tag: there.tags[tag] for tag in SHOWN}
    assert re.findall(r"\w+", here.words) == re.findall(r"\w+", there.words)


def test_every_link_leads_somewhere_and_nothing_is_fetched_from_elsewhere(site):
    pages = {file: Page(file.read_text()) for file in site.rglob("*.html")}
    count = 0
    for file, page in pages.items():
        if file.name == "404.html":  # its links are those of a server's root
            continue
        assert [x for x in page.fetched if urlsplit(x).netloc] == [], file
        for link in [*page.links, *page.fetched]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{file}: {link}"
            assert not parts.fragment or unquote(parts.fragment) in pages[target].ids, f"{file}: {link}"
            count += 1
    assert count > 500


def test_what_pages_link_to_in_the_repository_is_on_the_site(site):
    assert 'href="../examples/custom_rule.py.txt"' in html_of("docs/sampling.md", site)
    assert (site / "examples" / "custom_rule.py.txt").read_text() == (ROOT / "examples" / "custom_rule.py").read_text()
    assert "mkdocs_hooks" not in " ".join(p.name for p in site.rglob("*"))


@pytest.fixture(scope="module")
def reference(site) -> Page:
    return Page(html_of("docs/reference.md", site))


@pytest.mark.parametrize("name", q.__all__)
def test_the_reference_has_every_public_name_with_its_docstring(reference, name):
    assert {f"qwen3llada_jax.{name}", f"qwen3llada_jax.{name}.{name}"} & reference.ids
    thing = getattr(q, name)
    if inspect.isclass(thing) or inspect.isfunction(thing):
        told, *sections = re.split(r"\n(?:Args|Attributes|Raises|Returns):\n", inspect.getdoc(thing) or "")
        assert told, f"{name} has no docstring"
        items = [item for text in sections for item in re.findall(r"^    \w[^:\n]*: (.+(?:\n {6,}.+)*)", text, re.M)]
        for part in (told, *items):
            assert " ".join(re.findall(r"\w+", part)) in " ".join(re.findall(r"\w+", reference.words))


@pytest.mark.parametrize(
    ("page", "added", "said"),
    [
        ("README.md", "[x](docs/no_such_page.md)", "no_such_page.md"),
        ("docs/masks.md", "[x](training.md#no-such-heading)", "no-such-heading"),
        ("docs/masks.md", "[x](../examples/no_such_file.py)", "no_such_file.py"),
        ("docs/page_of_no_section.md", "# A page", "page_of_no_section.md"),
    ],
    ids=["page", "heading", "file", "navigation"],
)
def test_a_link_that_leads_nowhere_fails_the_build(tmp_path, page, added, said):
    for name in ("docs", "examples", "qwen3llada_jax"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "tiny-qwen3"))
    for file in (*ROOT.glob("*.md"), ROOT / "mkdocs.yml"):
        shutil.copy(file, tmp_path)
    with (tmp_path / page).open("a") as file:
        file.write(f"\n{added}\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode == 1
    assert said in done.stderr
