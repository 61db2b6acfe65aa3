"""Layouts and embedded classes as conditions: a set, padded or not, mirrored or empty; and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import parameter_helpers
import pytest

from contextdiff_jax.conditions import EmbeddedClassCondition, LayoutCondition
from contextdiff_jax.conditions.layout import in_words, layout_of, rasterise
from contextdiff_jax.errors import UserError

NAMES = ("frog", "star", "red apple")
FROG, STAR = ("frog", (0.1, 0.2, 0.5, 0.8)), ("star", (0.4, 0.0, 0.9, 0.5))


def condition(max_objects=3, **how):
    return LayoutCondition(NAMES, max_objects, (8, 8), width=16, depth=1, token_grid=4, map_channels=4, **how)


@pytest.fixture(scope="module")
def params():
    return parameter_helpers.randomised(jax.eval_shape(condition().init, jax.random.key(0)), 0.3)


def encode(params, layouts, max_objects=3):
    c = condition(max_objects)
    return jax.jit(c.encode)(params, c.read(layouts))


def objects_of(context):
    return np.asarray(context.tokens[:, 16:])


def test_a_layout_is_a_set(params):
    one, other = encode(params, [[FROG, STAR]]), encode(params, [[STAR, FROG]])
    np.testing.assert_allclose(one.spatial, other.spatial, atol=1e-6)
    np.testing.assert_allclose(one.tokens[:, :16], other.tokens[:, :16], atol=1e-5)
    np.testing.assert_allclose(objects_of(one)[:, [1, 0, 2]], objects_of(other), atol=1e-5)
    assert np.abs(objects_of(one)[0, 0] - objects_of(one)[0, 1]).max() > 1e-2


def test_padding_adds_nothing(params):
    few, many = encode(params, [[FROG]], 1), encode(params, [[FROG]], 3)
    np.testing.assert_allclose(few.spatial, many.spatial, atol=1e-6)
    np.testing.assert_allclose(few.tokens, many.tokens[:, :17], atol=1e-5)
    np.testing.assert_array_equal(many.mask[0], [True] * 17 + [False] * 2)
    np.testing.assert_array_equal(objects_of(many)[0, 1:], 0)


@pytest.mark.parametrize("how, tolerance", [(dict(remat=True), 1e-6), (dict(dtype=jnp.bfloat16), 0.1)])
def test_layouts_in_other_precision_and_with_recomputed_blocks(params, how, tolerance):
    c, expected = condition(**how), encode(params, [[FROG, STAR]])
    found = jax.jit(c.encode)(params, c.read([[FROG, STAR]]))
    for name in ("tokens", "pooled", "spatial"):
        assert getattr(found, name).dtype == jnp.float32
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=tolerance)
    text = str(jax.make_jaxpr(c.encode)(params, c.read([[FROG, STAR]])))
    assert ("bf16" in text, "remat" in text or "checkpoint" in text) == ("dtype" in how, "remat" in how)


@pytest.mark.parametrize(
    "side, grid, words",
    [(48, 8, "tokens are 6 x 6; 48, 24, 12, 6, 3 can"), (8, 16, "tokens are 8 x 8; 8, 4, 2, 1 can")],
)
def test_a_grid_that_halving_does_not_lead_to_is_said(side, grid, words):
    with pytest.warns(UserWarning, match=f"token_grid={grid} cannot be had by halving a side of {side}: the {words}"):
        LayoutCondition(NAMES, 2, (side, side), width=16, depth=1, token_grid=grid, map_channels=4)


def test_the_empty_layout_is_the_null_condition(params):
    asked, empty = encode(params, [[FROG, STAR]]), encode(params, [[]])
    null = condition().null(params, asked)
    for name in ("tokens", "pooled", "mask", "spatial"):
        np.testing.assert_allclose(getattr(null, name), getattr(empty, name), atol=1e-5)
    assert np.abs(asked.spatial - empty.spatial).max() > 1e-2


def test_boxes_cover_cells_by_their_area_and_mirror_with_the_picture():
    boxes = np.array([FROG[1], (0.3, 0.25, 0.55, 1.0)])
    cover = np.asarray(rasterise(boxes, 4, 8))
    fine = np.zeros((2, 400, 800))
    for i, (x0, y0, x1, y1) in enumerate(boxes):
        fine[i, round(400 * y0) : round(400 * y1), round(800 * x0) : round(800 * x1)] = 1
    np.testing.assert_allclose(cover, fine.reshape(2, 4, 100, 8, 100).mean((2, 4)), atol=1e-6)
    mirrored = boxes[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [1, 0, 1, 0]
    np.testing.assert_allclose(rasterise(mirrored, 4, 8), cover[:, :, ::-1], atol=1e-6)


def test_layouts_come_from_records_and_go_back_into_words():
    record = {"objects": np.array([2, -1]), "boxes": np.array([[0.25, 0.5, 0.75, 1.0], [0, 0, 0, 0]], np.float32)}
    layout = layout_of(record, NAMES)
    assert layout == [("red apple", (0.25, 0.5, 0.75, 1.0))]
    read, taken = condition().read([layout]), condition().from_records([record])
    for name in ("boxes", "labels"):
        np.testing.assert_array_equal(read[name], taken[name])
    assert in_words(layout) == "red apple at 25,50,75,100" and in_words([]) == "nothing"
    assert in_words([(2, layout[0][1])], NAMES) == in_words(layout, NAMES) == in_words(layout)


@pytest.mark.parametrize(
    "layout, message",
    [
        ([("forg", FROG[1])], "'forg' is no class; nearest are frog"),
        ([(3, FROG[1])], "3 is no class"),
        ([(True, FROG[1])], "True is no class"),
        ([("frog", (0.1, 0.2, 0.1, 0.8))], "must have 0 <= x0 < x1 <= 1"),
        ([("frog", (-0.1, 0.2, 0.5, 0.8))], "must have 0 <= x0 < x1 <= 1"),
        ([("frog", (0.1, float("nan"), 0.5, 0.8))], "must have 0 <= x0 < x1 <= 1"),
        ([("frog", (0.1, 0.2, 0.5))], "is no box"),
        ([("frog", "left")], "is no box"),
        ([("frog", ("0.1", "0.2", "0.5", "0.8"))], "is no box"),
        ([("frog", (10**400, 0, 1, 1))], "is no box"),
        ([("frog", None)], "is no box"),
        (["frog"], "'frog' is no \\(class, "),
        ([FROG] * 4, "4 objects; at most 3 fit"),
    ],
)
def test_what_is_no_layout_is_refused(layout, message):
    with pytest.raises(UserError, match=message):
        condition().read([layout])


def test_names_are_found_however_they_are_spelled():
    named = LayoutCondition(("cafe\u0301", "frog"), 2, (8, 8), width=16, depth=1, token_grid=4, map_channels=4)
    box = (0.1, 0.1, 0.5, 0.5)
    assert named.read([[("caf\u00e9", box), ("frog", box)], [(1, box)]])["labels"].tolist() == [[0, 1], [1, -1]]


def test_classes_are_four_tokens_and_no_class_is_another():
    c = EmbeddedClassCondition(NAMES, width=16, depth=1)
    params = jax.jit(c.init)(jax.random.key(0))
    context = c.encode(params, c.read(["star", "0"]))
    assert context.tokens.shape == (2, 4, 16) and context.mask.all()
    assert 0.5 < jnp.std(context.tokens[0] - context.tokens[1]) / np.sqrt(2.0) < 2.0  # as large as a text encoder's
    null, empty = c.null(params, context), c.encode(params, c.empty(2))
    np.testing.assert_array_equal(null.tokens, empty.tokens)
    half = EmbeddedClassCondition(NAMES, width=16, depth=1, dtype=jnp.bfloat16, remat=True)
    rough = half.encode(params, half.read(["star", "0"]))
    assert rough.tokens.dtype == rough.pooled.dtype == jnp.float32
    assert 0 < jnp.abs(rough.tokens - context.tokens).max() < 0.1
    assert min(jnp.abs(a - b).max() for a, b in [(context.tokens[0], context.tokens[1]), (null.tokens, context.tokens)])
