"""Which recipes are tried on a graph, and which a bundle may be made by."""

from dataclasses import replace

from edgeclip_quant.recipes import COMPARED, INT4, INT8, recipes_for, usable_recipes

BATCHED = ["int8-dynamic", "int8-dynamic-smooth"]


def test_names_tell_recipes_apart_and_the_defaults_are_among_them() -> None:
    assert len({one.name for one in COMPARED}) == len(COMPARED)
    assert COMPARED[0] is INT8 and INT4 in COMPARED


def test_a_vision_graph_has_no_table_to_be_tried_in_4_bits() -> None:
    assert recipes_for(has_table=True) == list(COMPARED)
    left_out = [one.name for one in COMPARED if one not in recipes_for(has_table=False)]
    assert left_out == ["int8-table4"]


def test_the_first_of_two_that_make_the_same_is_tried() -> None:
    twin = replace(INT8, name="twin", describes="the same once more")
    assert recipes_for((INT8, twin), has_table=True) == [INT8]
    assert recipes_for((twin, INT8), has_table=True) == [twin]


def test_a_bundle_is_made_by_what_needs_neither_its_batch_nor_data_that_nobody_gave() -> None:
    of_data = [one.name for one in COMPARED if one not in usable_recipes(is_made_up=False)]
    made_up = [one.name for one in COMPARED if one not in usable_recipes(is_made_up=True)]
    assert of_data == BATCHED
    assert sorted(made_up) == sorted([*BATCHED, "int8-static"])
