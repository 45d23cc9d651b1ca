"""The demo's data is small, whole, and what the source says."""

import gzip
import os
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

pytestmark = pytest.mark.whole

DEMO = Path(__file__).parents[2] / "services/errata_services/demo"
FILE = DEMO / "census_employment.csv.gz"
SOURCE = Path(__file__).parents[3] / "shared/data/nannyml"
LIMIT_BYTES = 1_500_000


@cache
def rows() -> list[dict[str, str]]:
    header, *lines = gzip.decompress(FILE.read_bytes()).decode().splitlines()
    names = header.split(",")
    return [dict(zip(names, line.split(","), strict=True)) for line in lines]


def test_the_file_is_small_and_says_where_it_comes_from() -> None:
    assert FILE.stat().st_size <= LIMIT_BYTES
    said = (DEMO / "census_employment.md").read_text(encoding="utf-8")
    for needed in ("PUMS", "nannyml 0.13.1", "Apache License 2.0", "public domain", "**Changed:**"):
        assert needed in said


def test_parts_hold_the_rows_they_should_in_order() -> None:
    assert Counter(row["part"] for row in rows()) == {"r": 10_000, "c": 24_000, "v": 20_000}
    numbers = {part: [int(row["row"]) for row in rows() if row["part"] == part] for part in "rcv"}
    assert numbers["c"] == list(range(45_126, 69_126))
    assert numbers["v"] == list(range(128_619, 148_619))
    assert numbers["r"] == sorted(set(numbers["r"]))
    assert numbers["r"][0] < 100  # spread over the whole year, not its head
    assert numbers["r"][-1] > 68_000


def test_group_quarters_vanish_and_then_are_all_there_is() -> None:
    block = range(133_619, 143_890)
    for row in rows():
        if row["part"] == "v":
            assert (row["RELP"] in ("16", "17")) == (int(row["row"]) in block)
    clean = [row["RELP"] in ("16", "17") for row in rows() if row["part"] == "c"]
    assert 0.06 < sum(clean) / len(clean) < 0.09


def test_accuracy_is_the_one_known_of_the_source() -> None:
    def accuracy(chosen: list[dict[str, str]]) -> float:
        right = [(int(row["probability_ppm"]) >= 500_000) == (row["employed"] == "1") for row in chosen]
        return sum(right) / len(right)

    block = [row for row in rows() if row["part"] == "v" and row["RELP"] in ("16", "17")]
    assert accuracy(block) == pytest.approx(0.764, abs=0.001)
    assert accuracy([row for row in rows() if row["part"] == "c"]) == pytest.approx(0.825, abs=0.01)


def source_is_there() -> bool:
    if SOURCE.is_dir():
        return True
    message = f"{SOURCE} is not there: the demo's rows were not compared with their source"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


@pytest.mark.data
def test_every_row_is_the_row_of_the_source() -> None:
    assert source_is_there()
    reference = parquet.read_table(SOURCE / "employment_MA_reference.pq")
    analysis = parquet.read_table(SOURCE / "employment_MA_analysis.pq")
    targets = parquet.read_table(SOURCE / "employment_MA_analysis_target.pq").to_pydict()
    target_of = dict(zip(targets["id"], targets["employed"], strict=True))
    features = [name for name in rows()[0] if name not in ("part", "row", "probability_ppm", "employed")]
    assert len(features) == 16
    for parts, table in (("r", reference), ("cv", analysis)):
        ours = [row for row in rows() if row["part"] in parts]
        theirs: dict[str, list[Any]] = table.take([int(row["row"]) for row in ours]).to_pydict()
        for name in features:
            assert [int(row[name]) for row in ours] == [int(value) for value in theirs[name]]
        ppm = [int(row["probability_ppm"]) for row in ours]
        assert ppm == pytest.approx([p * 1e6 for p in theirs["predicted_probability"]], abs=0.5 + 1e-6, rel=0)
        assert [int(p >= 500_000) for p in ppm] == theirs["prediction"]
        true = theirs["employed"] if parts == "r" else [target_of[key] for key in theirs["id"]]
        assert [int(row["employed"]) for row in ours] == true
