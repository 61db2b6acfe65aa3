import collections

import pytest

from contextdiff_jax.data import captions, vocabulary
from contextdiff_jax.data.vocabulary import BACKGROUNDS, RELATIONS, SAME_DRAWING, noun_phrase
from contextdiff_jax.errors import UserError


def test_demo_has_twelve_objects_and_six_backgrounds_with_balanced_holdouts():
    vocab = vocabulary("demo")
    assert len(vocab.objects) == len(set(vocab.objects)) == 12
    assert vocab.backgrounds == tuple(BACKGROUNDS) and len(BACKGROUNDS) == 6
    assert len(vocab.unseen) == 12 and len(vocab.seen) == 60
    assert set(collections.Counter(o for o, _ in vocab.unseen).values()) == {1}
    assert set(collections.Counter(b for _, b in vocab.unseen).values()) == {2}


def test_single_has_every_named_emoji_once_and_no_skin_tone():
    vocab = vocabulary("single")
    assert len(vocab.objects) > 1900
    assert len(set(vocab.objects)) == len(set(vocab.codes)) == len(vocab.objects)
    assert not [code for code in vocab.codes if {f"1F3F{c}" for c in "BCDEF"} & set(code.split("-"))]
    assert not [name for name in vocab.objects if "skin tone" in name or "_" in name or ":" in name]


def test_object_ids_and_holdouts_agree_between_presets():
    demo, single = vocabulary("demo"), vocabulary("single")
    assert single.objects[:12] == demo.objects and single.codes[:12] == demo.codes
    assert {pair for pair in single.unseen if pair[0] < 12} == demo.unseen
    assert vocabulary("pairs") == single == vocabulary("demo+pairs")
    assert vocabulary("demo+demo") == demo


def test_holdouts_of_single_are_one_per_object_and_about_even():
    vocab = vocabulary("single")
    assert [o for o, _ in sorted(vocab.unseen)] == list(range(len(vocab.objects)))
    counts = collections.Counter(b for _, b in vocab.unseen)
    assert min(counts.values()) > 0.12 * len(vocab.objects)


def test_emoji_with_the_same_drawing_share_their_holdout():
    vocab = vocabulary("single")
    held_out = {vocab.codes[o]: b for o, b in vocab.unseen}
    for code, drawing in SAME_DRAWING.items():
        assert drawing not in SAME_DRAWING and held_out[code] == held_out[drawing]


@pytest.mark.parametrize(
    "name, phrase",
    [
        ("red apple", "a red apple"),
        ("umbrella", "an umbrella"),
        ("unicorn", "a unicorn"),
        ("one o'clock", "a one o'clock"),
        ("hourglass done", "an hourglass done"),
        ("OK button", "an OK button"),
        ("UP! button", "an UP! button"),
        ("grapes", "grapes"),
        ("bus", "a bus"),
        ("octopus", "an octopus"),
        ("face with rolling eyes", "a face with rolling eyes"),
        ("people holding hands", "people holding hands"),
        ("flag of Brazil", "the flag of Brazil"),
        (" in the wild", "a  in the wild"),
        (" ", "a  "),
    ],
)
def test_noun_phrase(name, phrase):
    assert noun_phrase(name) == phrase


def test_caption_wording():
    vocab = vocabulary("demo")
    assert vocab.caption(0, 3) == "a red apple on a blue background"
    apple, frog = vocab.objects.index("red apple"), vocab.objects.index("frog")
    caption = vocab.relation_caption(apple, 0, frog, 2)
    assert caption == "a red apple to the left of a frog on a green background"


def test_captions_give_every_word():
    assert len(captions("demo")) == len(set(captions("demo"))) == 72
    everything = captions("demo+single+pairs")
    assert set(captions("demo")) <= set(everything)
    words = set(" ".join(everything).split())
    names = vocabulary("single").objects
    assert not {word for name in names for word in name.split()} - words
    assert all(any(relation in text for text in everything) for relation in RELATIONS)


@pytest.mark.parametrize("preset", ["", "demos", "demo+", "demo,single", None])
def test_unknown_preset(preset):
    with pytest.raises(UserError, match="accepted: demo, single, pairs"):
        vocabulary(preset)
