"""The layers hold, and the check that says so would notice if they did not."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LINT = Path(sys.executable).parent / "lint-imports"

# What must never pass: file, its text, and what the report says of it.
VIOLATIONS = [
    (
        "shared/errata/domain/planted_client.py",
        "import sqlalchemy\n\n__all__ = ['sqlalchemy']\n",
        "errata.domain.planted_client -> sqlalchemy",
    ),
    (
        "shared/errata/domain/planted_adapter.py",
        "from errata import adapters\n\n__all__ = ['adapters']\n",
        "errata.domain.planted_adapter -> errata.adapters",
    ),
    (
        "shared/errata/contracts/planted_service.py",
        "import errata_services\n\n__all__ = ['errata_services']\n",
        "errata.contracts.planted_service -> errata_services",
    ),
    ("shared/errata/utils.py", "", "errata.utils"),
    (
        "services/errata_services/tagger.py",
        "from errata_services import enricher\n\n__all__ = ['enricher']\n",
        "errata_services.tagger -> errata_services.enricher",
    ),
]


def lint(root: Path) -> tuple[int, str]:
    """Runs import-linter on the packages of a tree; the tree goes before the installed ones."""
    path = os.pathsep.join(str(root / folder) for folder in ("shared", "services"))
    done = subprocess.run(
        [str(LINT), "--no-cache", "--config", str(root / "pyproject.toml")],
        cwd=root,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "400", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_layers_hold() -> None:
    code, report = lint(ROOT)
    assert code == 0, report


def test_planted_violations_are_reported(tmp_path: Path) -> None:
    for folder in ("shared", "services"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "*.gz"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name, text, _ in VIOLATIONS:
        (tmp_path / name).write_text(text, encoding="utf-8")
    code, report = lint(tmp_path)
    assert code == 1, report
    for _, _, line in VIOLATIONS:
        assert line in report, f"{line} is missing in:\n{report}"
