"""Writes the generated files of ``schemas/``; the examples in it are written by hand and stay as they are."""

from pathlib import Path

from errata.contracts.schemas import documents

SCHEMAS = Path(__file__).resolve().parent.parent / "schemas"


def main() -> None:
    wanted = documents()
    for stale in (*SCHEMAS.glob("*.schema.json"), *SCHEMAS.glob("*.yaml")):
        if stale.name not in wanted:
            stale.unlink()
            print(f"removed {stale.name}")
    for name, text in wanted.items():
        path = SCHEMAS / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {name}")


if __name__ == "__main__":
    main()
