"""Layouts: which features stand where, and which cell a value falls into."""

from errata.contracts import Contract, Reference
from errata.domain.layouts import MAX_CELLS, compile_layout


def contract(**features: object) -> Contract:
    return Contract.model_validate({"model": "m", "features": features})


def reference(**counts: dict[str, int]) -> Reference:
    sketches = {name: {"kind": "category", "n": sum(of.values()), "counts": of} for name, of in counts.items()}
    return Reference.model_validate({"model": "m", "events": 1, "sketches": sketches})


def test_features_are_sorted_within_their_kind_whatever_the_order_of_the_contract() -> None:
    types = {"z": "number", "a": "integer", "v": "vector", "t": "text", "c": "category", "b": "bool"}
    features = {name: {"type": kind} for name, kind in types.items()}
    layout = compile_layout("default", "m", contract(**features), None)
    assert (layout.numbers, layout.categories, layout.others) == (("a", "z"), ("b", "c"), ("t", "v"))
    assert layout == compile_layout("default", "m", contract(**dict(reversed(features.items()))), None)


def test_cells_follow_the_reference_and_the_contract_decides_what_is_allowed() -> None:
    allowed = contract(c={"type": "category", "categories": ["x", "y", "z"]})
    cells = compile_layout("default", "m", allowed, reference(c={"y": 3, "x": 1, "gone": 1})).codes[0]
    assert cells == {None: -1.0, "x": 1.0, "y": 2.0, "z": 3.0}  # cell 0 is of "gone", which is not allowed any more
    assert cells.get("gone") is None


def test_without_a_reference_the_contract_names_the_cells() -> None:
    cells = compile_layout("default", "m", contract(c={"type": "category", "categories": ["b", "a"]}), None).codes[0]
    assert cells == {None: -1.0, "a": 0.0, "b": 1.0}


def test_an_open_category_takes_any_text() -> None:
    layout = compile_layout("default", "m", contract(c={"type": "category"}), reference(c={"y": 3}))
    assert layout.open_categories == (True,)
    assert [layout.codes[0].get(value) for value in ("y", "new", None)] == [0.0, 1.0, -1.0]
    assert layout.codes[0]["new"] == 1.0


def test_at_most_64_cells() -> None:
    names = [f"{at:03d}" for at in range(100)]
    cells = compile_layout("default", "m", contract(c={"type": "category", "categories": names}), None).codes[0]
    assert cells["063"] == 63.0
    assert cells["064"] == cells["099"] == MAX_CELLS


def test_a_bool_is_counted_as_its_text() -> None:
    cells = compile_layout("default", "m", contract(b={"type": "bool"}), reference(b={"true": 5})).codes[0]
    assert (cells[True], cells[False], cells["true"], cells[None]) == (0.0, 1.0, 0.0, -1.0)


def test_classes_come_from_the_reference_when_there_is_no_contract() -> None:
    known = Reference.model_validate(
        {"model": "m", "events": 2, "output": {"kind": "category", "n": 2, "counts": {"no": 1, "yes": 1}}}
    )
    layout = compile_layout("default", "m", None, known)
    assert layout.open_classes
    assert [layout.classes.get(name) for name in ("no", "yes", "maybe", None)] == [0.0, 1.0, 2.0, -1.0]
    assert layout.features == ()


def test_the_contract_closes_the_classes() -> None:
    closed = Contract.model_validate({"model": "m", "output": {"type": "class", "classes": ["b", "a"]}})
    layout = compile_layout("default", "m", closed, None)
    assert not layout.open_classes
    assert layout.classes == {None: -1.0, "a": 0.0, "b": 1.0}
