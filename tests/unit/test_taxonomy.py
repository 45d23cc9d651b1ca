import pytest

from errata.domain.diagnosis.documents import MAX_DOCUMENT_BYTES, read_document
from errata.domain.diagnosis.rules import default_rules
from errata.domain.diagnosis.taxonomy import LAYERS, UNKNOWN_TAG, default_taxonomy, load_taxonomy
from errata.errors import Misconfigured

ONE_TAG = """
version: "1.0.0"
tags:
  - {tag: data:quality:missing_values, definition: d, harm: 0.5, layer: data, root_class: data, maps: {avid: [P0104]}}
"""


def test_a_tag_is_read_with_all_its_fields() -> None:
    tag = load_taxonomy(ONE_TAG).tags["data:quality:missing_values"]
    assert (tag.definition, tag.harm, tag.layer, tag.root_class) == ("d", 0.5, "data", "data")
    assert tag.maps == (("avid", ("P0104",)),)


def test_the_package_brings_a_taxonomy_that_covers_all_layers_and_classes() -> None:
    taxonomy = default_taxonomy()
    assert {tag.layer for tag in taxonomy.tags.values()} == {*LAYERS, None}
    assert {tag.root_class for tag in taxonomy.tags.values()} == {
        "data", "model", "deployment", "infrastructure", "integration", "unknown",
    }  # fmt: skip
    assert taxonomy.tags[UNKNOWN_TAG].root_class == "unknown"


def test_a_root_class_other_than_unknown_speaks_of_a_layer() -> None:
    tags = default_taxonomy().tags.values()
    assert [tag.tag for tag in tags if tag.layer is None] == [UNKNOWN_TAG]


def test_no_rule_sets_the_unknown_tag() -> None:
    taxonomy = default_taxonomy()
    assert UNKNOWN_TAG not in {rule.tag for rule in default_rules(taxonomy).rules}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "harm: 0.5",
            "harm: 1.5",
            "tag data:quality:missing_values: harm: is out of range; write a number from 0 to 1",
        ),
        ("harm: 0.5", "harm: yes", "tag data:quality:missing_values: harm: is a bool; write a finite number"),
        ("harm: 0.5", "harm: .nan", "tag data:quality:missing_values: harm: is a number; write a finite number"),
        ("harm: 0.5, ", "", "tag data:quality:missing_values: harm: is nothing"),
        ("layer: data", "layer: soup", "layer: write one of infrastructure, data, model, integration"),
        ("root_class: data", "root_class: soup", "root_class: write one of data, model"),
        ("definition: d", 'definition: " "', "definition is a text; write a text that is not empty"),
        ("definition: d", "definitoin: d", "tags[0]: unknown key definitoin; use one of"),
        ("data:quality:missing_values", "Missing values", "tags[0].tag: not of the form namespace:predicate:value"),
        ("avid: [P0104]", "avid: [104]", "maps.avid: an entry is a number; write texts"),
        ("avid: [P0104]", "aivd: [P0104]", "maps: unknown key aivd"),
        ('"1.0.0"', "1.0", "version is a number; write a text"),
        ('"1.0.0"', '"one"', 'version is not of the form "1.0.0"'),
        ("tags:", "tgas:", "unknown key tgas"),
    ],
)
def test_what_is_wrong_is_named(old: str, new: str, said: str) -> None:
    assert old in ONE_TAG
    with pytest.raises(Misconfigured) as error:
        load_taxonomy(ONE_TAG.replace(old, new, 1))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_tag_that_stands_twice_is_refused() -> None:
    with pytest.raises(Misconfigured, match="tag data:quality:missing_values: stands twice"):
        load_taxonomy(ONE_TAG + ONE_TAG.splitlines()[-1] + "\n")


def test_an_alias_bomb_is_refused_before_it_unfolds() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 30))
    with pytest.raises(Misconfigured, match="line 2: aliases"):
        read_document(bomb, "taxonomy")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\na: 2\n", "line 2: a key stands twice"),
        ("a: [1\n", "not YAML, line"),
        ("? [a, b]\n: 1\n", "line 1: a key is not a text"),
        ("- a\n", "the top level is a list"),
        ("", "the top level is nothing"),
        ("a: 2026-02-31\n", "a date or number that does not exist"),
        ("a: !!python/object/apply:os.getcwd []\n", "not YAML, line 1"),
        ("a: " + "[" * 25 + "]" * 25, "nested deeper than 24"),
        ("a: " + "[" * 100_000, "nested deeper than 24"),
        ("a: " + "x" * MAX_DOCUMENT_BYTES, "over 256 KiB"),
        ("a: \x00", "not YAML"),
        ("a: \ud800", "not YAML"),
    ],
)
def test_hostile_documents_are_refused_in_one_line(text: str, said: str) -> None:
    with pytest.raises(Misconfigured) as error:
        read_document(text, "taxonomy")
    assert str(error.value).startswith("taxonomy")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_depth_and_size_within_bounds_are_taken() -> None:
    assert read_document("a: " + "[" * 23 + "]" * 23, "taxonomy")["a"]
    assert len(read_document("a: " + "x" * (MAX_DOCUMENT_BYTES - 3), "taxonomy")["a"]) == MAX_DOCUMENT_BYTES - 3
