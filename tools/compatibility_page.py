"""Write docs/compatibility.md from the tests: what is tested with which framework, in which version, plugged in how.

    python tools/compatibility_page.py

A test that says `@pytest.mark.framework(name, plug_in)`, or whose module says it for all, is a line of the page, in the
words of its name. Versions are those of requirements/pins.txt. Tests are read, not run or imported, so that the page is
the same where a framework is not installed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "compatibility.md"
FOLDERS = ("tests/integrations", "tests/distributed", "tests/compat")

ORDER = ("transformers", "trl", "bitsandbytes", "peft", "accelerate", "lightning", "torch.distributed", "torch.optim")
"""The frameworks that the tests run, as the page lists them; those whose calls are made come after."""

PACKAGE = {"torch.distributed": "torch", "torch.optim": "torch"}

HEAD = """\
# Compatibility

Every line is a test that fails without what it says; `python tools/compatibility_page.py` makes this page from them.
How to plug in is told at length in [integrations](integrations/README.md).
"""


@dataclass(frozen=True, slots=True)
class Tested:
    """One test.

    Attributes:
        framework, plug_in: what its mark says.
        law: its name in words.
        place: the file, from the root of the repository.
    """

    framework: str
    plug_in: str
    law: str
    place: str


def page() -> str:
    """Return the page as the tests are now."""
    found = [
        tested for folder in FOLDERS for file in sorted((ROOT / folder).glob("test_*.py")) for tested in read(file)
    ]
    others = sorted({tested.framework for tested in found} - set(ORDER))
    return "\n".join([HEAD, *(section(name, [t for t in found if t.framework == name]) for name in (*ORDER, *others))])


def read(file: Path) -> Iterator[Tested]:
    """Yield the tests of a file that are marked."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assigned = [node.value for node in tree.body if isinstance(node, ast.Assign) and is_for_all(node)]
    for_all = [mark for value in assigned for mark in marks(value)]
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef) or not node.name.startswith("test_"):
            continue
        own = [mark for decorator in node.decorator_list for mark in marks(decorator)]
        for framework, plug_in in own or for_all:
            law = node.name.removeprefix("test_").replace("_", " ")
            yield Tested(framework, plug_in, law, str(file.relative_to(ROOT)))


def is_for_all(node: ast.Assign) -> bool:
    """Return whether this is `pytestmark = ...`."""
    return any(isinstance(target, ast.Name) and target.id == "pytestmark" for target in node.targets)


def marks(node: ast.expr) -> Iterator[tuple[str, str]]:
    """Yield the arguments of each `pytest.mark.framework(...)` in an expression."""
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "framework":
            framework, plug_in = (ast.literal_eval(argument) for argument in call.args)
            yield framework, plug_in


def section(framework: str, found: list[Tested]) -> str:
    """Return one framework's part of the page."""
    lines = [f"## {framework}", "", version_of(framework), ""]
    for plug_in in dict.fromkeys(tested.plug_in for tested in found):
        lines += [f"- {plug_in}"]
        lines += [f"    - {t.law} ([test](../{t.place}))" for t in found if t.plug_in == plug_in]
    return "\n".join([*lines, ""])


def version_of(framework: str) -> str:
    """Return what is said of the version that was tested."""
    if framework not in ORDER:
        return "Not installed where the tests run: they make the calls that it makes."
    name = PACKAGE.get(framework, framework)
    pins = (ROOT / "requirements" / "pins.txt").read_text(encoding="utf-8")
    versions = re.findall(rf"^{re.escape(name)}==(\S+)", pins, flags=re.MULTILINE)
    return f"Tested with {name} {versions[-1]}."


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
