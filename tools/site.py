"""What mkdocs.yml hooks in: pages of the site that are not files in docs/.

README.md, ARCHITECTURE.md, CHANGELOG.md and others stand at the root, where people look for them, and are pages of the
site without a copy. Files that a page links to (a test, an example) become pages that show them. Links are written as
they hold between files of the repository, and here become those between pages; a link to a file that there is not is
left as it is, and mkdocs refuses it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]

PAPERS = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "design.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "bench/README.md": "bench.md",
}
"""Files of the repository that are pages, and their names in the site."""

SHOWN = "source"
"""The folder of the site for files that pages link to."""

LANGUAGES = {".py": "python", ".json": "json", ".toml": "toml", ".yaml": "yaml", ".txt": "text", "": "text"}

_FENCE = re.compile(r"^ *(```+|~~~+)")
_LINK = re.compile(r"(?P<before>\]\()(?P<target>[^)\s#:]+)(?P<after>(#[^)\s]*)?\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the papers, and what any page links to."""
    for path, page in PAPERS.items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text(encoding="utf-8")))
    pages = [file for file in files if file.is_documentation_page()]
    for linked in sorted({path for file in pages for path in linked_files(file.content_string, in_repository(file))}):
        files.append(
            File.generated(config, in_site(linked), content=shown(linked), inclusion=InclusionLevel.NOT_IN_NAV)
        )
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Make links between files of the repository links between pages."""
    if page.file.src_uri.startswith(f"{SHOWN}/"):
        return markdown
    here = PurePosixPath(page.file.src_uri).parent
    there = in_repository(page.file)

    def to_page(match: re.Match[str]) -> str:
        path = resolve(match["target"], there)
        if not (ROOT / path).is_file():
            return match[0]
        return f"{match['before']}{relpath(in_site(path), here)}{match['after']}"

    return "".join(_LINK.sub(to_page, line) if is_prose else line for line, is_prose in lines(markdown))


def linked_files(markdown: str, there: str) -> Iterator[str]:
    """Yield the files of the repository that a page links to and that are no pages yet."""
    for line, is_prose in lines(markdown):
        for match in _LINK.finditer(line) if is_prose else ():
            path = resolve(match["target"], there)
            if (ROOT / path).is_file() and in_site(path).startswith(f"{SHOWN}/"):
                yield path


def lines(markdown: str) -> Iterator[tuple[str, bool]]:
    """Yield each line, and whether it is prose and not code between fences."""
    fence = ""
    for line in markdown.splitlines(keepends=True):
        mark = _FENCE.match(line)
        yield line, not (fence or mark)
        if mark:
            fence = "" if fence and mark[1].startswith(fence) else fence or mark[1]


def resolve(target: str, there: str) -> str:
    """Return the path in the repository of a link in the file at path `there`."""
    return normpath(PurePosixPath(there).parent / target)


def in_repository(file: File) -> str:
    """Return a page's path in the repository."""
    return next((path for path, page in PAPERS.items() if page == file.src_uri), f"docs/{file.src_uri}")


def in_site(path: str) -> str:
    """Return where a file of the repository is in the site."""
    return PAPERS.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else f"{SHOWN}/{path}.md")


def shown(path: str) -> str:
    """Return a page that shows a file."""
    text = (ROOT / path).read_text(encoding="utf-8")
    language = LANGUAGES[PurePosixPath(path).suffix]
    return f"---\nsearch:\n  exclude: true\n---\n\n# {path}\n\n~~~~{language}\n{text}~~~~\n"
