"""A user study as a folder of static files: source and two results side by side, answered in a browser, offline."""

import hashlib
import json
import shutil
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL.Image

from contextdiff_jax.data.images import reason
from contextdiff_jax.data.listing import files_below, listed
from contextdiff_jax.data.videos import unreadable
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import atomic, check_file, check_writable, user_path, write_json
from contextdiff_jax.pictures import GRID

ASSETS = Path(__file__).parent.parent / "assets" / "study"
VIDEOS = (".mp4", ".webm")
CLIPS = (*VIDEOS, ".gif")
MEDIA = (*CLIPS, ".png", ".jpg", ".jpeg", ".webp")
TITLE = "Which is better?"
REPEATS, CATCHES = 0.1, 0.05  # shares of the pairs
TEXT = "Which one shows better what the text says?"
PICTURE = "Which one is the better picture?"
TEMPORAL = "Which one moves more smoothly and steadily?"


def write_study(
    out: str | Path,
    sets: Sequence[str],
    *,
    source: str = "",
    captions: dict[str, str] | None = None,
    title: str = TITLE,
) -> dict[str, Any]:
    """Writes index.html, the media under names that tell nothing, and study.json with what is what.

    Args:
        out: folder of the page; must be new or empty.
        sets: "NAME=FOLDER", ours first and then the baselines; results are matched by file name without ending.
        source: folder with the sources of an edit, matched the same way; "" shows none.
        captions: item -> text.
        title: of the page.

    Returns:
        What study.json holds.

    Raises:
        UserError: fewer than two sets, names or items that do not match, an output folder in use.
    """
    named = dict(_named(text) for text in sets)
    if len(named) < 2 or len(named) < len(sets):
        raise UserError(
            f"{len(named)} different sets ({', '.join(sets)}); give two or more: --set=ours=A --set=theirs=B"
        )
    found = {name: _items(folder) for name, folder in named.items()}
    ours, *baselines = named
    items = _matched(found, captions)
    sources = _items(source) if source else {}
    if source and (missing := [item for item in items if item not in sources]):
        raise UserError(f"source {source!r} lacks {listed(missing)}; give one for each result")
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"output folder {str(out)!r} is a file; give a new folder")
    check_writable(out, "output folder", "give another --out")
    if out.exists() and any(out.iterdir()):
        raise UserError(
            f"output folder {str(out)!r} is not empty; give a new one: the names of its media are the study's"
        )
    (out / "media").mkdir(parents=True)
    copied = {(name, item): _copy(found[name][item], out, f"{name}/{item}") for name in named for item in items}
    pairs = [
        {
            "item": item,
            "caption": (captions or {}).get(item, ""),
            "source": _copy(sources[item], out, f"source/{item}") if source else "",
            "baseline": baseline,
            "ours": copied[ours, item],
            "other": copied[baseline, item],
        }
        for item in items
        for baseline in baselines
    ]
    plan = {"ours": ours, "pairs": pairs, "questions": _questions(pairs), "repeats": REPEATS, "catches": CATCHES}
    plan["study"] = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:16]
    write_json(plan | {"sets": named, "title": title}, out / "study.json")
    with atomic(out / "index.html") as temporary:
        temporary.write_text(page(plan, title), encoding="utf-8")
    return plan


def page(plan: dict[str, Any], title: str) -> str:
    """The page as one HTML text, its scripts and the plan inside."""
    safe = lambda text: text.replace("&", "&amp;").replace("<", "&lt;")
    script = "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in ("order.js", "page.js"))
    template = string.Template((ASSETS / "page.html").read_text(encoding="utf-8"))
    # "<" of a caption must not end the element that holds the plan.
    text = json.dumps(plan).replace("<", "\\u003c")
    return template.substitute(title=safe(title), plan=text, script=script)


def _named(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise UserError(f"set {text!r} has no name or no folder; give NAME=FOLDER, e.g. --set=ours=runs/a/samples")
    return name, user_path(folder)


def _items(folder: str | Path) -> dict[str, Path]:
    """Item -> file, the item being the file's name without its ending; the grid of all samples is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"folder of results {str(folder)!r} does not exist; give one with pictures or clips")
    below = files_below(folder, "folder of results")
    names = [name for name in below if Path(name).suffix.lower() in MEDIA and Path(name).name != GRID]
    found = {str(Path(name).with_suffix("")): folder / name for name in names}
    if len(found) < len(names):
        raise UserError(f"{str(folder)!r} has two files of one name with different endings; keep one of each")
    if not found:
        raise UserError(f"{str(folder)!r} holds no pictures or clips; accepted: {', '.join(MEDIA)}")
    if bad := [f"{name} ({why})" for name in names if (why := _unreadable(folder / name))]:
        raise UserError(f"{str(folder)!r} has {len(bad)} files that a browser cannot show: {listed(bad)}; replace them")
    return found


def _unreadable(file: Path) -> str:
    """Why a picture cannot be shown, or a video not begun; "" where it can."""
    if file.suffix.lower() in VIDEOS:
        return unreadable(file)
    try:
        with PIL.Image.open(file) as image:
            image.load()
        return ""
    except Exception as error:  # decoders raise almost anything on damaged files
        return reason(error)


def _matched(found: dict[str, dict[str, Path]], captions: dict[str, str] | None) -> list[str]:
    """The items, which all sets must have."""
    items = sorted(set.union(*(set(files) for files in found.values())))
    for name, files in found.items():
        if missing := [item for item in items if item not in files]:
            raise UserError(
                f"set {name!r} lacks {len(missing)} of {len(items)} results: {listed(missing)}; sets must match"
            )
    if captions is not None and (missing := [item for item in items if not captions.get(item)]):
        raise UserError(f"captions lack {len(missing)} of {len(items)} results: {listed(missing)}; give one for each")
    return items


def _copy(file: Path, out: Path, identity: str) -> str:
    """Copies a file under a name that does not tell whose it is; other pictures make it another study."""
    name = "media/" + hashlib.sha256(identity.encode() + file.read_bytes()).hexdigest()[:20] + file.suffix.lower()
    shutil.copyfile(file, out / name)
    return name


def _questions(pairs: list[dict[str, str]]) -> list[dict[str, str]]:
    """Of the text (or the picture, where there is none), and of motion where all are clips."""
    has_text = all(pair["caption"] for pair in pairs)
    questions = [{"id": "text" if has_text else "picture", "text": TEXT if has_text else PICTURE}]
    if all(Path(pair[side]).suffix in CLIPS for pair in pairs for side in ("ours", "other")):
        questions.append({"id": "temporal", "text": TEMPORAL})
    return questions


def study_on_command(out: str, sets: Sequence[str], answers: Sequence[str], *, source: str, captions: str) -> None:
    """`--mode=study`: makes the page, or with answers prints what they say and writes it to `out` as JSON.

    Raises:
        UserError: bad input of any kind, in one line.
    """
    if answers:
        given = {"--set": sets, "--captions": captions, "--source": source}
        if idle := [flag for flag, value in given.items() if value]:
            raise UserError(f"{', '.join(idle)} cannot act with --answers; leave it out, or make the page first")
        _read_out(answers, out)
        return
    if not out:
        raise UserError(
            "--out is missing; name the folder of the page: --mode=study --out=study --set=ours=A --set=b=B"
        )
    plan = write_study(out, sets, source=source, captions=_read_captions(captions, sets))
    folders = [folder for _, folder in map(_named, sets)]
    if grids := [f"{folder}/{name}" for folder in folders for name in files_below(folder) if Path(name).name == GRID]:
        print(f"left out: {listed(grids)}: grids show other pictures together")
    print(f"{len(plan['pairs'])} pairs in {out}/index.html; open it, or put the folder on any web server")


def _read_out(answers: Sequence[str], out: str) -> None:
    """What the answers say, on the terminal and as JSON."""
    from contextdiff_jax.evaluate.study_answers import report, statistics
    from contextdiff_jax.evaluate.study_files import answer_files, read_answers

    if out:
        check_file(out)
    files, others = answer_files(answers)
    result = {"files": list(map(str, files)), "files_not_read": list(map(str, others))}
    result |= statistics(read_answers(answers))
    if others:
        print(f"not read: {listed(result['files_not_read'])}: no JSON lines files by their names")
    report(result)
    if out:
        write_json(result, out)
        print(f"all figures: {out}")


def _read_captions(path: str, sets: Sequence[str]) -> dict[str, str] | None:
    """Item -> text of a metadata.jsonl, or of a text file with one line an item in the order of the files' names."""
    if not path:
        return None
    from contextdiff_jax.evaluate.picture_sets import captions_of

    folder = _named(sets[0])[1] if sets else Path()
    found = [(file.relative_to(folder).as_posix(), item) for item, file in _items(folder).items()] if sets else []
    names, items = [name for name, _ in sorted(found)], [item for _, item in sorted(found)]
    return dict(zip(items, captions_of(Path(path), names, len(names)), strict=True))
