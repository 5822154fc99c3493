"""Every code block in the documentation runs, and prints what the page says (see `snippets.py` for how)."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.snippets import BlockFailed, Page, blocks_of

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_holds_what_it_shows(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_page(page, tmp_path, monkeypatch)


def run_page(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    running = Page(f"page_{page.stem}".replace("-", "_"))
    try:
        for block in blocks_of(page):
            running.run(block)
    finally:
        running.close()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("```python\nassert 1 == 2, 'wrong'\n```", "wrong"),
        ("```python\nasync def test_it():\n    assert 1 == 2, 'wrong'\n```", "wrong"),
        ("<!-- file: test_it.py -->\n```python\ndef test_it():\n    assert 1 == 2, 'wrong'\n```", "wrong"),
        ("```console\n$ echo one\ntwo\n```", "it prints:\none"),
        ("```console\n$ echo one\none\n$ false\n```", "ended with 1"),
        ("<!-- fails -->\n```console\n$ true\n```", "ended with 0"),
        ("<!-- background -->\n```console\n$ echo one\ntwo\n```", "it printed:\none"),
        ("```bash\nfalse\ntrue\n```", "ended with 1"),
        ("```\nwhat is this?\n```", "nobody runs"),
        ("```sql\nSELECT 1\n```", "nobody runs"),
        ("<!-- background -->\n```python\n1\n```", "nobody runs"),
        ("```python\n1", "has no end"),
    ],
)
def test_a_page_that_is_wrong_fails(text: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# A page\n\n{text}\n")
    with pytest.raises(AssertionError, match=why):
        run_page(page, tmp_path, monkeypatch)


def test_a_failure_names_page_and_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A page\n\n```console\n$ false\n```\n")
    with pytest.raises(BlockFailed, match=r"page\.md:4: "):
        run_page(page, tmp_path, monkeypatch)


def test_blocks_of_a_page_share_names_and_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- file: given.py -->\n```python\nnumber = 1\n```\n\n```python\nfrom given import number\n```\n\n"
        "- in a list:\n\n  ```python\n  import pathlib\n  pathlib.Path('out').write_text(f'{number}  2\\n3\\n4')\n"
        "  ```\n\n"
        "```console\n$ cat \\\n  out\n1 2\n...\n4\n```\n\n<!-- not run: no such thing -->\n```brainfuck\n+\n```\n"
    )
    run_page(page, tmp_path, monkeypatch)
