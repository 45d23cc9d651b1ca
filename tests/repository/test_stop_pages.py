"""Each way a service can end has a page that says what to do."""

import re
from pathlib import Path

from tests.repository.test_alerts_and_dashboards import ROOT

from errata.errors import StateDamaged
from errata.runtime.stops import FOLDER, PAGES, STATE_PAGES

PAGE_FILES = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / FOLDER).glob("*.md")}
INDEX = PAGE_FILES.pop("README")
WITHOUT_LAST_WORD = {"killed", "unresponsive"}  # no process can name its own page then
SECTIONS = ["What you see", "What it means", "What to do", "When to escalate"]
CODES = {"0", "1", "70", "75", "78", "137"}


def test_each_page_is_named_by_a_process_or_by_the_index_alone() -> None:
    assert set(PAGE_FILES) == PAGES | WITHOUT_LAST_WORD
    assert set(re.findall(r"\]\(([\w-]+)\.md\)", INDEX)) == set(PAGE_FILES)


def test_each_reason_of_damaged_state_has_its_page_and_stands_on_it() -> None:
    assert set(re.findall(r"``(\w+)``", StateDamaged.__doc__ or "")) == set(STATE_PAGES)
    for reason, page in STATE_PAGES.items():
        assert f"`{reason}`" in PAGE_FILES[page]
        assert f"`{reason}`" in INDEX


def test_no_service_says_a_reason_that_nobody_knows() -> None:
    said = set()
    for folder in ("shared/errata", "services/errata_services"):
        for path in (ROOT / folder).rglob("*.py"):
            said |= reasons_said(path)
    assert said
    assert said - {"catalogue"} <= set(STATE_PAGES)  # that is the file in a data folder, which no service has


def reasons_said(path: Path) -> set[str]:
    text = path.read_text(encoding="utf-8")
    return set(re.findall(r"StateDamaged\(\s*f?\"(\w+): ", text)) | set(re.findall(r"_damaged\([^)]*?\"(\w+)\",", text))


def test_a_reason_that_is_made_up_would_be_seen(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        'raise StateDamaged(f"moonlit: {topic}")\nraise _damaged(topic, 1, "sunlit", "it is")\n'
    )
    assert reasons_said(tmp_path / "a.py") == {"moonlit", "sunlit"}


def test_pages_are_of_one_form_and_name_their_exit_code() -> None:
    for name, text in PAGE_FILES.items():
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SECTIONS, name
        codes = re.findall(r"^Exit code (\d+)", text, re.MULTILINE)
        assert len(codes) == 1, name
        assert codes[0] in CODES, name
        (row,) = [line for line in INDEX.splitlines() if f"]({name}.md)" in line]
        assert row.split("|")[1].strip() == codes[0], name
