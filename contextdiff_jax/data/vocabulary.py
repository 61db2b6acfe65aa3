"""Names, captions and held-out combinations of the embedded OpenMoji scenes.

Every preset draws on one list of objects: the demo's twelve come first, then every other named emoji in the
order of its code. An object id therefore means the same in `demo`, `single`, `pairs` and their mixtures.

Each object has exactly one of the six background colours held out, in all presets alike: scenes with that
combination make up the `unseen` split and are never trained on (but by the judge, whose own `recogniser`
split has every combination and shares no scene with another split).
"""

import dataclasses
import functools
import hashlib
import re

from contextdiff_jax.errors import UserError

PRESETS = ("demo", "single", "pairs", "demo_objects", "demo_pairs")
OF_THE_DEMO = ("demo", "demo_objects", "demo_pairs")  # presets that show its twelve objects only
OF_TWO = ("pairs", "demo_pairs")
SPLITS = ("train", "val", "test", "unseen", "recogniser")
RELATIONS = ("to the left of", "to the right of", "above", "below")

# Base colours (sRGB), saturated enough to be told apart after a shade shift of at most 12 levels.
BACKGROUNDS = {
    "red": (214, 48, 49),
    "yellow": (240, 205, 50),
    "green": (60, 160, 70),
    "blue": (40, 95, 215),
    "purple": (140, 70, 175),
    "white": (240, 240, 240),
}

# Code, name and held-out background. Chosen at 32 x 32: large areas of one colour, no two alike in colour and
# outline. Every background is held out twice.
DEMO_OBJECTS = (
    ("1F34E", "red apple", "blue"),
    ("2B50", "star", "purple"),
    ("1F438", "frog", "red"),
    ("1F437", "pig face", "green"),
    ("1F499", "blue heart", "yellow"),
    ("26BD", "soccer ball", "purple"),
    ("1F383", "pumpkin", "white"),
    ("1F344", "mushroom", "green"),
    ("1F427", "penguin", "yellow"),
    ("1F41F", "fish", "red"),
    ("2602", "umbrella", "white"),
    ("1F43B", "bear", "blue"),
)

# Emoji that OpenMoji draws exactly like another one (flag of Monaco and of Indonesia). They keep their own
# names but count as the same picture for the splits and the held-out combinations.
SAME_DRAWING = {
    "1F1ED-1F1F2": "1F1E6-1F1FA",
    "1F1EA-1F1E6": "1F1EA-1F1F8",
    "1F1F9-1F1E9": "1F1F7-1F1F4",
    "1F1E8-1F1F5": "1F1EB-1F1F7",
    "1F1F2-1F1EB": "1F1EB-1F1F7",
    "1F1F2-1F1E8": "1F1EE-1F1E9",
    "1F1F8-1F1EF": "1F1F3-1F1F4",
    "1F468-200D-1F3A8": "1F9D1-200D-1F3A8",
    "1F468-200D-1F680": "1F9D1-200D-1F680",
    "1F468-200D-1F373": "1F9D1-200D-1F373",
    "1F469-200D-2764-FE0F-200D-1F468": "1F491",
    "1F468-200D-1F3ED": "1F9D1-200D-1F3ED",
    "1F468-200D-1F469-200D-1F466": "1F46A",
    "1F468-200D-1F33E": "1F9D1-200D-1F33E",
    "1F468-200D-1F692": "1F9D1-200D-1F692",
    "1F469-200D-2764-FE0F-200D-1F48B-200D-1F468": "1F48F",
    "1F468-200D-1F9B2": "1F9D1-200D-1F9B2",
    "1F468-200D-1F9B1": "1F9D1-200D-1F9B1",
    "1F468-200D-1F9BD": "1F9D1-200D-1F9BD",
    "1F468-200D-1F9BD-200D-27A1-FE0F": "1F9D1-200D-1F9BD-200D-27A1-FE0F",
    "1F468-200D-1F9BC": "1F9D1-200D-1F9BC",
    "1F468-200D-1F9BC-200D-27A1-FE0F": "1F9D1-200D-1F9BC-200D-27A1-FE0F",
    "1F9CE-200D-2642-FE0F": "1F9CE",
    "1F9CE-200D-2642-FE0F-200D-27A1-FE0F": "1F9CE-200D-27A1-FE0F",
    "1F468-200D-1F527": "1F9D1-200D-1F527",
    "1F468-200D-2708-FE0F": "1F9D1-200D-2708-FE0F",
    "1F9CD-200D-2642-FE0F": "1F9CD",
    "1F468-200D-1F393": "1F9D1-200D-1F393",
    "1F6B6-200D-2642-FE0F": "1F6B6",
    "1F6B6-200D-2642-FE0F-200D-27A1-FE0F": "1F6B6-200D-27A1-FE0F",
    "1F468-200D-1F9AF": "1F9D1-200D-1F9AF",
    "1F468-200D-1F9AF-200D-27A1-FE0F": "1F9D1-200D-1F9AF-200D-27A1-FE0F",
    "1F93C-200D-2642-FE0F": "1F93C",
    "1F473-200D-2640-FE0F": "1F473",
}

_SKIN_TONES = frozenset(("1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"))
_SINGULAR_IN_S = re.compile(
    r"(\w*bus|cactus|octopus|lotus|hibiscus|rhinoceros|hippopotamus|dress|compass|cross|glass|abacus|princess"
    r"|sos|tennis|kiss|fleur-de-lis)"
)
_SOUNDS_LIKE_YOU = re.compile(r"(uni|eu|one\b)")
_SPELLED_OUT = re.compile(r"(A|O|AB|ID|NG|OK|SOS|ATM|x-ray)\b")
_AFTER_HEAD = re.compile(
    r"\s(with|in|on|of|without|behind|over|facing|holding|lifting|showing|blowing|under|and)\s.*"
)


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What a preset can show.

    Attributes:
        objects: names by object id.
        backgrounds: colour names by background id.
        codes: OpenMoji file names (hexadecimal code points) by object id.
        unseen: held-out (object id, background id) combinations.
    """

    objects: tuple[str, ...]
    backgrounds: tuple[str, ...]
    codes: tuple[str, ...]
    unseen: frozenset[tuple[int, int]]

    def caption(self, object: int, background: int) -> str:
        """The caption of one object alone: "a red apple on a blue background"."""
        return f"{noun_phrase(self.objects[object])} on a {self.backgrounds[background]} background"

    def relation_caption(self, first: int, relation: int, second: int, background: int) -> str:
        """The caption of two objects: "a cat to the left of a tree on a green background"."""
        return f"{noun_phrase(self.objects[first])} {RELATIONS[relation]} {self.caption(second, background)}"

    @functools.cached_property
    def seen(self) -> tuple[tuple[int, int], ...]:
        """All combinations that are trained on, in order."""
        pairs = ((o, b) for o in range(len(self.objects)) for b in range(len(self.backgrounds)))
        return tuple(pair for pair in pairs if pair not in self.unseen)


@functools.cache
def noun_phrase(name: str) -> str:
    """The name with its article: "a frog", "an umbrella", "grapes", "the flag of Brazil"."""
    if name.startswith("flag of "):
        return f"the {name}"
    words = _AFTER_HEAD.sub("", name).lower().split() or [name]
    plural = words[-1].endswith("s") and not _SINGULAR_IN_S.fullmatch(words[-1])
    if plural or words[0] in ("people", "men", "women"):
        return name
    vowel = name[0].lower() in "aeiou" and not _SOUNDS_LIKE_YOU.match(name)
    vowel = vowel or name.startswith("hour") or bool(_SPELLED_OUT.match(name))
    return f"{'an' if vowel else 'a'} {name}"


def presets_of(preset: str) -> tuple[str, ...]:
    """Splits "demo+pairs" into its presets.

    Raises:
        UserError: a part is unknown.
    """
    parts = tuple(part.strip() for part in str(preset).split("+"))
    if unknown := [part for part in parts if part not in PRESETS]:
        accepted = ", ".join(PRESETS)
        raise UserError(
            f"data.preset: {unknown[0]!r} is unknown; accepted: {accepted}, or a mix joined by '+'"
        )
    return parts


@functools.cache
def vocabulary(preset: str) -> Vocabulary:
    """The objects, backgrounds and held-out combinations of a preset, or of a mixture ("demo+pairs").

    Raises:
        UserError: unknown preset.
    """
    rows = [(code, name) for code, name, _ in DEMO_OBJECTS]
    if set(presets_of(preset)) - set(OF_THE_DEMO):
        demo_codes = {code for code, _ in rows}
        rows += [(code, name) for code, name in sorted(_named_emoji().items()) if code not in demo_codes]
    codes = tuple(code for code, _ in rows)
    unseen = frozenset((i, held_out_background(code)) for i, code in enumerate(codes))
    return Vocabulary(tuple(name for _, name in rows), tuple(BACKGROUNDS), codes, unseen)


def held_out_background(code: str) -> int:
    """The background id that is never trained on with this emoji; the same in every preset and release."""
    for demo_code, _, colour in DEMO_OBJECTS:
        if code == demo_code:
            return tuple(BACKGROUNDS).index(colour)
    drawing = SAME_DRAWING.get(code, code)
    return hashlib.blake2b(drawing.encode(), digest_size=4).digest()[0] % len(BACKGROUNDS)


def captions(preset: str) -> tuple[str, ...]:
    """Caption texts of a preset, for training a tokenizer.

    Presets of one object give all captions; those of two give one for every object, relation and background (the
    second object runs through the list), so that every word is there in its usual company.
    """
    texts: dict[str, None] = {}
    for part in presets_of(preset):
        vocab = vocabulary(part)
        backgrounds = range(len(vocab.backgrounds))
        for i in range(len(vocab.objects)):
            if part not in OF_TWO:
                texts.update((vocab.caption(i, b), None) for b in backgrounds)
                continue
            for b in backgrounds:
                for r in range(len(RELATIONS)):
                    second = (i + 1 + b * len(RELATIONS) + r) % len(vocab.objects)
                    texts[vocab.relation_caption(i, r, second, b)] = None
    return tuple(texts)


def class_names(preset: str) -> tuple[str, ...]:
    """What a record's `label` counts: the captions or the objects, see `labels_are_captions`."""
    return captions(preset) if labels_are_captions(preset) else vocabulary(preset).objects


def labels_are_captions(preset: str) -> bool:
    """Whether a record's `label` says object and background, as it does for demo; else it says the (first) object.

    `demo_objects` shows what demo shows, but its backgrounds are left open.
    The thousands of objects of the other presets with all their backgrounds would be too many classes to learn.
    """
    return presets_of(preset) == ("demo",)


def captions_of_one(preset: str) -> bool:
    """Whether captions of one object alone are trained on; else all of them name two."""
    return bool(set(presets_of(preset)) - set(OF_TWO))


def says_left_and_right(preset: str) -> bool:
    """Whether captions tell a picture from its mirror image: those of two objects, and of names such as "left arrow",
    which the demo's objects do not have."""
    return any(part in OF_TWO or part not in OF_THE_DEMO for part in presets_of(preset))


def _named_emoji() -> dict[str, str]:
    """Code -> name of every emoji that has an English name and a drawing, without skin-tone variants."""
    import emoji

    from contextdiff_jax.data import raster

    drawn = raster.available_codes()
    named = {}
    for characters, entry in emoji.EMOJI_DATA.items():
        points = [f"{ord(c):04X}" for c in characters]
        code = "-".join(points)
        if code not in drawn:
            code = "-".join(p for p in points if p != "FE0F")
        if code in drawn and entry["status"] != emoji.STATUS["component"] and not _SKIN_TONES & set(points):
            named[code] = _readable(entry["en"], code)
    return named


def _readable(name: str, code: str) -> str:
    """ ":man’s_shoe:" -> "man's shoe"; flags, whose name is only the country's, become "flag of ..."."""
    text = name.strip(":").replace("_", " ").replace("’", "'")
    is_flag = re.fullmatch(r"1F1[EF][0-9A-F]-1F1[EF][0-9A-F]|1F3F4-E00.*", code)
    return f"flag of {text}" if is_flag else text
