# SPDX-License-Identifier: MIT
"""The rendered world: what scenes are drawn, what pictures they make, what captions say of them."""

import re

import jax
import numpy as np
import pytest
import scipy.stats

from jaxgen.world import caption, render
from jaxgen.world import scene as world

COUNT = 20_000
BLACK = 2  # into BACKGROUNDS
RENDER = jax.jit(jax.vmap(render.render))
DISTANCES = jax.jit(render.signed_distances)


@pytest.fixture(scope="module")
def scenes():
    """Training scenes on the host."""
    return drawn(0, COUNT)


def drawn(seed, *options):
    """Scenes on the host."""
    return jax.device_get(jax.jit(lambda key: world.draw_many(key, *options))(jax.random.key(seed)))


def pairs_of(scenes):
    """(shape, colour) of every object that a picture shows, [N, 2]."""
    both = np.stack([scenes.shape, scenes.color], axis=-1)
    return np.concatenate([both[:, 0], both[scenes.count == 2, 1]])


def alone(shape, color=0, background=BLACK, center=(32.0, 32.0), radius=13.0):
    """A scene of one object."""
    one = lambda value: np.full(2, value, np.int32)  # noqa: E731
    return world.Scene(
        np.int32(1), one(shape), one(color), one(1), np.int32(0), np.int32(background),
        np.tile(np.float32(center), (2, 1)), np.full(2, radius, np.float32), np.zeros(6, np.int32),
    )  # fmt: skip


def stacked(scenes):
    return world.Scene(*(np.stack(field) for field in zip(*scenes, strict=True)))


def levels(scenes):
    """Pictures of a batch as floats in [0, 255]."""
    return (np.asarray(RENDER(scenes), np.float64) + 1) * 127.5


def covers(scenes, color=0, background=BLACK):
    """How much of each pixel an object of this colour covers, [N, 64, 64]."""
    ground = render.BACKGROUNDS[background].astype(float)
    way = render.COLORS[color] - ground
    return (levels(scenes) - ground) @ way / (way @ way)


# --- scenes ---------------------------------------------------------------------------------


def test_a_scene_depends_on_the_key_and_its_number_alone(scenes):
    few, other = drawn(0, 7), drawn(1, 7)
    for few_field, field in zip(few, scenes, strict=True):
        np.testing.assert_array_equal(few_field, field[:7])
    assert any((a != b).any() for a, b in zip(few, other, strict=True))


def test_every_shape_and_every_colour_is_held_out_once():
    shapes, colors = world.HELD_OUT.T
    assert sorted(shapes) == list(range(len(world.SHAPES)))
    assert sorted(colors) == list(range(len(world.COLORS)))


def test_training_shows_all_pairs_but_those_held_out(scenes):
    shown = {tuple(map(int, pair)) for pair in pairs_of(scenes)}
    held_out = {tuple(map(int, pair)) for pair in world.HELD_OUT}
    every = {(s, c) for s in range(8) for c in range(8)}
    assert shown == every - held_out
    assert len(held_out) == 8


def test_held_out_scenes_lead_with_a_held_out_pair():
    two = drawn(3, 500, world.HELD_OUT, 1.0)
    held_out = {tuple(map(int, pair)) for pair in world.HELD_OUT}
    firsts, seconds = (
        set(zip(two.shape[:, i].tolist(), two.color[:, i].tolist(), strict=True)) for i in (0, 1)
    )
    assert firsts == held_out
    assert not seconds & held_out
    assert (two.count == 2).all()
    assert (drawn(3, 50, world.HELD_OUT, 0.0).count == 1).all()


def test_two_objects_differ_in_shape_or_colour(scenes):
    same = (scenes.shape[:, 0] == scenes.shape[:, 1]) & (scenes.color[:, 0] == scenes.color[:, 1])
    assert not same[scenes.count == 2].any()


@pytest.mark.parametrize(
    ("name", "values"), [("relation", 4), ("size", 2), ("background", 4), ("wording", 64)]
)
def test_words_are_drawn_uniformly(scenes, name, values):
    counts = np.bincount(getattr(scenes, name).ravel(), minlength=values)
    assert len(counts) == values
    assert scipy.stats.chisquare(counts).pvalue > 1e-4


def test_pairs_and_the_number_of_objects_have_the_asked_distribution(scenes):
    for i, rows in ((0, slice(None)), (1, scenes.count == 2)):
        found = 8 * scenes.shape[rows, i] + scenes.color[rows, i]
        counts = np.bincount(found, minlength=64)
        assert scipy.stats.chisquare(counts[counts > 0]).pvalue > 1e-4
    share = np.mean(scenes.count == 2)
    assert abs(share - 0.65) < 4 * (0.65 * 0.35 / COUNT) ** 0.5


def test_relations_hold_by_far(scenes):
    """The first object is further away along the named direction than across it."""
    x, y = (scenes.center[:, 1] - scenes.center[:, 0]).T  # from the first to the second
    towards = {"left of": x, "right of": -x, "above": y, "below": -y}  # y points down
    for i, name in enumerate(world.RELATIONS):
        rows = (scenes.relation == i) & (scenes.count == 2)
        across = y if i < 2 else x
        assert rows.sum() > 1000
        assert (towards[name][rows] > np.abs(across[rows]) + 5).all()


def test_an_only_object_stands_at_the_side_that_its_relation_names(scenes):
    x, y = (scenes.center[:, 0] - world.SIZE / 2).T
    towards = {"left of": -x, "right of": x, "above": -y, "below": y}  # y points down
    for i, name in enumerate(world.RELATIONS):
        rows = (scenes.relation == i) & (scenes.count == 1)
        across = y if i < 2 else x
        assert rows.sum() > 1000
        assert (towards[name][rows] > np.abs(across[rows]) + 3).all()


def test_objects_stay_inside_and_do_not_touch(scenes):
    edges = np.minimum(scenes.center, world.SIZE - scenes.center).min(-1) - scenes.radius
    two = scenes.count == 2
    assert edges[:, 0].min() > 1.3  # two of the largest objects leave a little less than MARGIN
    assert edges[two, 1].min() > 1.3
    apart = np.linalg.norm(scenes.center[:, 0] - scenes.center[:, 1], axis=-1)
    gaps = apart - scenes.radius.sum(-1)
    assert gaps[two].min() >= 3 - 1e-4


def test_sizes_do_not_overlap(scenes):
    small, large = scenes.radius[scenes.size == 0], scenes.radius[scenes.size == 1]
    assert small.max() < 10 < 12 < large.min()


# --- pictures -------------------------------------------------------------------------------

# areas for a radius of 1: circle 0.9, square of side 1.6, inradius 0.55, inner corners at 0.45,
# half diagonal 0.62 with its half circles, ring from 0.48 to 0.96, two bars, half diagonals
AREAS = {
    "circle": np.pi * 0.9**2,
    "square": 1.6**2,
    "triangle": 3 * 3**0.5 * 0.55**2,
    "star": 5 * 0.45 * np.sin(np.pi / 5),
    "heart": (2 + np.pi / 2) * 0.62**2,
    "ring": np.pi * (0.96**2 - 0.48**2),
    "cross": 2 * 2 * 0.64 - 0.64**2,
    "diamond": 2 * 0.68,
}
CENTERS = [(32.0, 32.0), (32.5, 32.0), (32.0, 32.5), (31.7, 32.2), (30.25, 33.9)]


@pytest.mark.parametrize("shape", range(8))
@pytest.mark.parametrize("radius", [8.0, 13.0])
def test_covered_areas_are_those_of_geometry_wherever_the_object_stands(shape, radius):
    scenes = stacked([alone(shape, center=place, radius=radius) for place in CENTERS])
    areas = covers(scenes).sum((1, 2))
    expected = AREAS[world.SHAPES[shape]] * radius**2
    # distances near sharp corners are bounds, and a star has ten of them
    tolerance = 0.03 if world.SHAPES[shape] == "star" else 0.01
    np.testing.assert_allclose(areas, expected, rtol=tolerance)
    np.testing.assert_allclose(areas, areas.mean(), rtol=tolerance)


# from the centre to the left, right, top and bottom, for a radius of 1
REACH = {
    "circle": (0.9, 0.9, 0.9, 0.9),
    "square": (0.8, 0.8, 0.8, 0.8),
    "triangle": (0.55 * 3**0.5, 0.55 * 3**0.5, 0.9, 0.75),  # circumradius 1.1, lowered by 0.2
    "star": (np.sin(0.4 * np.pi), np.sin(0.4 * np.pi), 1.0, np.cos(0.2 * np.pi)),
    "heart": (0.31 + 0.62 / 2**0.5, 0.31 + 0.62 / 2**0.5, 0.31 + 0.62 / 2**0.5 - 0.33, 0.95),
    "ring": (0.96, 0.96, 0.96, 0.96),
    "cross": (1.0, 1.0, 1.0, 1.0),
    "diamond": (0.68, 0.68, 1.0, 1.0),
}


@pytest.mark.parametrize("shape", range(8))
def test_objects_reach_as_far_as_their_definition_says(shape):
    cover = covers(stacked([alone(shape)]))[0]
    rows, columns = np.flatnonzero(cover.max(1) > 0.02), np.flatnonzero(cover.max(0) > 0.02)
    reach = 32 - columns[0], columns[-1] + 1 - 32, 32 - rows[0], rows[-1] + 1 - 32
    expected = 13.0 * np.asarray(REACH[world.SHAPES[shape]])
    np.testing.assert_allclose(reach, expected, atol=1.3)  # a pixel is whole, and its edge soft


def supersampled(scene, factor=8):
    """The picture with hard edges in many times the resolution, averaged over pixels."""
    middle = (np.arange(64 * factor, dtype=np.float32) + 0.5) / factor
    x, y = np.meshgrid(middle, middle)
    fine = np.tile(render.BACKGROUNDS[scene.background].astype(float), (*x.shape, 1))
    for i in range(int(scene.count)):
        (cx, cy), radius = scene.center[i], scene.radius[i]
        distance = np.asarray(DISTANCES(x - cx, y - cy, radius))[scene.shape[i]]
        fine[distance < 0] = render.COLORS[scene.color[i]]
    return fine.reshape(64, factor, 64, factor, 3).mean((1, 3))


def test_pictures_equal_supersampled_ones_but_for_rounded_corners(scenes):
    chosen = [world.take(scenes, i) for i in range(16)]
    pictures = levels(stacked(chosen))
    for scene, picture in zip(chosen, pictures, strict=True):
        error = np.abs(picture - supersampled(scene))
        assert error.mean() < 0.3  # of 255
        assert error.max() < 80
        assert (error > 20).mean() < 0.003


def test_background_and_insides_have_exactly_their_colours():
    chosen = [(color, background) for color in range(8) for background in range(4)]
    pictures = levels(stacked([alone(1, *names) for names in chosen])).round(3)
    for (color, background), picture in zip(chosen, pictures, strict=True):
        assert (picture[:, :20] == render.BACKGROUNDS[background]).all()
        assert (picture[24:40, 24:40] == render.COLORS[color]).all()


def test_a_single_object_hides_the_second_entry():
    one = alone(0)
    two = one._replace(shape=np.int32([0, 3]), center=np.float32([[32, 32], [10, 10]]))
    np.testing.assert_array_equal(levels(stacked([one])), levels(stacked([two])))


def test_a_batch_equals_its_pictures_one_by_one(scenes):
    chosen = [world.take(scenes, i) for i in range(6)]
    alone = jax.jit(render.render)
    one_by_one = [(np.asarray(alone(scene)) + 1) * 127.5 for scene in chosen]
    np.testing.assert_allclose(levels(stacked(chosen)), one_by_one, atol=2e-3)  # of 255


# --- captions -------------------------------------------------------------------------------

SIZE_OF = {"small": "small", "little": "small", "large": "large", "big": "large"}
RELATION_OF = {
    "left of": "left of", "to the left of": "left of", "right of": "right of",
    "to the right of": "right of", "above": "above", "over": "above", "below": "below",
    "under": "below",
}  # fmt: skip
PLACE_OF = {
    "on the left": "left of", "on the right": "right of", "at the top": "above",
    "at the bottom": "below",
}  # fmt: skip
PLACES = "on the left|on the right|at the top|at the bottom"
OBJECT = (
    r"(an?) (?:(small|little|large|big) )?(red|orange|yellow|green|cyan|blue|purple|pink) "
    r"(circle|square|triangle|star|heart|ring|cross|diamond)"
)
SENTENCE = re.compile(
    rf"(?:a (?:picture|drawing) of )?{OBJECT}"
    rf"(?: ((?:to the )?(?:left|right) of|above|over|below|under) {OBJECT}"
    rf"| ({PLACES}) and {OBJECT} ({PLACES})| ({PLACES}))?"
    r"(?: on (?:(white|gray|black|cream)|a (white|gray|black|cream) background))?"
)


@pytest.fixture(scope="module")
def captions(scenes):
    return caption.captions(scenes)


def test_captions_read_back_say_the_scene(scenes, captions):
    for i, text in enumerate(captions[:5000]):
        scene, match = world.take(scenes, i), SENTENCE.fullmatch(text)
        assert match, text
        *objects, on, on_a = match.groups()
        first, (relation, *other) = objects[1:4], objects[4:9]
        here, *there, opposite, alone = objects[9:]
        said = [first] + [each[1:] for each in (other, there) if each[0]]
        assert len(said) == scene.count
        for j, (size, color, shape) in enumerate(said):
            assert color == world.COLORS[scene.color[j]]
            assert shape == world.SHAPES[scene.shape[j]]
            assert caption.says_size(scene, j) == (size is not None)
            assert size is None or SIZE_OF[size] == world.SIZES[scene.size[j]]
        places = {RELATION_OF.get(relation), PLACE_OF.get(here), PLACE_OF.get(alone)} - {None}
        assert places == ({world.RELATIONS[scene.relation]} if caption.says_place(scene) else set())
        if here:
            assert PLACE_OF[opposite] == world.RELATIONS[scene.relation ^ 1]
        ground = on or on_a
        assert caption.says_background(scene) == (ground is not None)
        assert ground in (None, world.BACKGROUNDS[scene.background])


def test_an_stands_before_vowels_only(captions):
    articles = {m for text in captions for m in re.findall(r"\b(an?) (\w)", text)}
    assert {letter for article, letter in articles if article == "an"} == {"o"}
    assert not {letter for article, letter in articles if article == "a"} & set("aeiou")


def test_every_wording_is_used(captions):
    words = " ".join(captions)
    phrases = [*SIZE_OF, *RELATION_OF, *PLACE_OF, "a picture of", "a drawing of", "background"]
    assert all(phrase in words for phrase in phrases)


def test_captions_fit_into_the_text_encoder(captions):
    assert max(len(text.split()) for text in captions) <= 22  # words are tokens; 24 with the ends


def test_shares_of_what_is_left_out(scenes):
    chosen = [world.take(scenes, i) for i in range(4000)]
    sizes = np.mean([caption.says_size(scene, 0) for scene in chosen])
    grounds = np.mean([caption.says_background(scene) for scene in chosen])
    places = np.mean([caption.says_place(scene) for scene in chosen if scene.count == 1])
    assert abs(sizes - 54 / 64) < 0.025
    assert abs(grounds - 48 / 64) < 0.03
    assert abs(places - 40 / 64) < 4 * 0.5 / 1300**0.5


def test_a_plain_scene_says_everything_in_the_first_words(scenes):
    i = int(np.flatnonzero(scenes.count == 2)[0])
    scene = world.take(scenes, i)._replace(
        shape=np.int32([3, 5]), color=np.int32([1, 5]), size=np.int32([1, 0]),
        relation=np.int32(2), background=np.int32(0),
    )  # fmt: skip
    text = caption.caption(caption.plain(scene))
    assert text == "a large orange star above a small blue ring on white"
    one = scene._replace(count=np.int32(1))
    assert caption.caption(caption.plain(one)) == "a large orange star at the top on white"


def test_two_places_are_said_instead_of_a_relation(scenes):
    i = int(np.flatnonzero(scenes.count == 2)[0])
    scene = caption.plain(world.take(scenes, i))
    scene.wording[2] = caption.PLACES_SAID - 1
    here, there = caption.PLACE_WORDS[world.RELATIONS[int(scene.relation)]]
    assert re.fullmatch(rf".* {here} and .* {there} on .*", caption.caption(scene))
