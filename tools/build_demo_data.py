"""Writes the census rows of the demo from the Parquet files of nannyml: ``build_demo_data.py FOLDER [TARGET]``.

Development only (needs pyarrow); its result is committed. The same input gives the same bytes.
"""

import csv
import gzip
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet

FEATURES = (
    "AGEP", "SCHL", "MAR", "RELP", "DIS", "ESP", "CIT", "MIG", "MIL", "ANC", "NATIVITY", "DEAR", "DEYE", "DREM", "SEX",
    "RAC1P",
)  # fmt: skip
HEADER = ("part", "row", *FEATURES, "probability_ppm", "employed")
REFERENCE_ROWS = 10_000
REFERENCE_SEED = 2015
CLEAN = range(45_126, 69_126)  # 2016, nothing happens
VANISHED = range(128_619, 148_619)  # RELP 16 and 17 gone, and the block in which there is nothing else
TARGET = Path(__file__).parents[1] / "services/errata_services/demo/census_employment.csv.gz"


def read(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    return rows


def line(part: str, row: int, source: dict[str, Any], employed: int) -> tuple[object, ...]:
    ppm = round(source["predicted_probability"] * 1_000_000)
    if source["prediction"] != int(ppm >= 500_000):
        raise SystemExit(f"row {row}: the prediction does not follow from its probability")
    return (part, row, *(int(source[name]) for name in FEATURES), ppm, employed)


def lines(folder: Path) -> Iterator[tuple[object, ...]]:
    reference = read(folder / "employment_MA_reference.pq")
    chosen = np.random.default_rng(REFERENCE_SEED).choice(len(reference), REFERENCE_ROWS, replace=False)
    for row in sorted(chosen.tolist()):
        yield line("r", row, reference[row], reference[row]["employed"])
    stream = read(folder / "employment_MA_analysis.pq")
    targets = {row["id"]: row["employed"] for row in read(folder / "employment_MA_analysis_target.pq")}
    for part, rows in (("c", CLEAN), ("v", VANISHED)):
        for row in rows:
            yield line(part, row, stream[row], targets[stream[row]["id"]])


def main(folder: Path, target: Path = TARGET) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows(lines(folder))
    target.write_bytes(gzip.compress(text.getvalue().encode(), compresslevel=9, mtime=0))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
