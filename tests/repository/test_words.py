"""No file carries a path of the machine it was written on, or the address of a package registry."""

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXCEPTED = {"uv.lock"}  # it says where each dependency comes from, which is what it is for
SKIPPED = {".git", ".venv", "dist", "build", "__pycache__"}

# Put together here, so that this file does not hold them.
PLACES = [f"/{name}/" for name in ("work", "root")] + [
    ".".join(parts)
    for parts in (("pypi", "org"), ("pythonhosted", "org"), ("registry", "npmjs", "org"), ("proxy", "golang", "org"))
]


def files(root: Path) -> list[Path]:
    """The files of a tree that are or could be committed."""
    if (root / ".git").exists() and shutil.which("git"):
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=root,
            capture_output=True,
            check=True,
        )
        return [root / os.fsdecode(name) for name in listed.stdout.split(b"\0") if name]
    return [
        path
        for path in root.rglob("*")
        if path.is_file() and not any(part in SKIPPED or part.endswith("_cache") for part in path.parts)
    ]


def places_in(root: Path) -> list[str]:
    found = []
    for path in files(root):
        if path.name in EXCEPTED or not path.is_file():
            continue
        data = path.read_bytes()
        found += [f"{path.relative_to(root)}: {place}" for place in PLACES if place.encode() in data]
    return found


def test_no_file_names_a_machine_or_a_registry() -> None:
    assert len(files(ROOT)) > 50
    assert places_in(ROOT) == []


def test_a_planted_place_is_found(tmp_path: Path) -> None:
    (tmp_path / "clean.md").write_text("the work is rooted in pypi\n", encoding="utf-8")
    (tmp_path / "uv.lock").write_text(PLACES[2], encoding="utf-8")
    assert places_in(tmp_path) == []
    for index, place in enumerate(PLACES):
        (tmp_path / f"planted_{index}.py").write_text(f"# see {place}x\n", encoding="utf-8")
    assert sorted(places_in(tmp_path)) == [f"planted_{index}.py: {place}" for index, place in enumerate(PLACES)]
