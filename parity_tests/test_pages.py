"""Every page for readers: its examples run, its commands exist, its links lead somewhere."""

import doctest
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    str(page.relative_to(ROOT))
    for pattern in ("*.md", "*/*.md", "parity_tests/*/*.md")
    for page in ROOT.glob(pattern)
    if not page.is_relative_to(ROOT / "results")
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
COMMAND = re.compile(r"python3? -m (parity_tests[\w.]*|experiments)((?: [a-z][a-z-]*)?)")
MAX_LINES, MAX_BYTES = 150, 8 * 1024


def blocks(page: str, *languages: str) -> list[str]:
    """The fenced blocks of a page in these languages."""
    return [code for kind, code in FENCE.findall((ROOT / page).read_text()) if kind in languages]


def anchors(page: Path) -> set[str]:
    """The names under which a page's headings can be linked to."""
    prose = FENCE.sub("", page.read_text())
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.fixture(autouse=True)
def _as_a_user(monkeypatch, tmp_path):
    """The frameworks as they come, in float32, in an empty folder."""
    import jax

    monkeypatch.chdir(tmp_path)
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.filterwarnings("default")  # of the frameworks around ours
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python", "pycon")])
def test_examples_print_what_they_say(page):
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    code = "\n".join(blocks(page, "python", "pycon"))
    test = parser.get_doctest(code, {"__name__": "__page__"}, page, page, 0)
    result = runner.run(test)
    assert result.attempted > 0
    assert result.failed == 0


def test_every_block_says_what_it_is():
    for page in PAGES:
        kinds = {kind for kind, _ in FENCE.findall((ROOT / page).read_text())}
        assert kinds <= {"python", "sh", "text", "json"}, page


COMMANDS = sorted(
    {
        (module, job.strip())
        for page in PAGES
        for module, job in COMMAND.findall((ROOT / page).read_text())
    }
)


@pytest.mark.parametrize(("module", "job"), COMMANDS)
def test_commands_exist(module, job):
    command = [sys.executable, "-m", module, *([job] if job else []), "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    folder = (ROOT / page).parent
    for link in LINK.findall(FENCE.sub("", (ROOT / page).read_text())):
        if link.startswith(("https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (folder / path).resolve() if path else ROOT / page
        assert target.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page}: {link}"


def test_the_front_page_is_short():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= MAX_LINES
    assert len(text.encode()) <= MAX_BYTES
    assert text.index("import jaxnorm") < len(text) / 2


def test_a_broken_page_is_noticed(tmp_path, monkeypatch):
    (tmp_path / "page.md").write_text("# A\n[x](missing.md)\n```python\n>>> 1 + 1\n3\n\n```\n")
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    with pytest.raises(AssertionError):
        test_links_lead_somewhere("page.md")
    with pytest.raises(AssertionError):
        test_examples_print_what_they_say("page.md")
