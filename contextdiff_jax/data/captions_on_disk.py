"""Captions of an image folder: tables (`metadata.jsonl`, `metadata.csv`), or a text file beside each image.

A table may stand in any folder, its names count from there or are whole paths, and it speaks for all images below;
elsewhere the text beside an image counts: of a.png, a.txt, a.png.txt or a.caption.
"""

import concurrent.futures
import csv
import json
import os
import pathlib
import posixpath
from collections.abc import Iterator, Sequence

from contextdiff_jax.errors import UserError
from contextdiff_jax.files import composed, is_unicode, read_text, text_lines

TABLES = ("metadata.jsonl", "metadata.csv")
_CAPTION_KEYS = ("text", "caption")
_TEXT_SUFFIXES = (".txt", ".caption")
_THREADS = 8


def read(folder: pathlib.Path, image_names: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """The captions that there are, of images and of files that a table lists but the folder lacks.

    Args:
        folder: root of the images.
        image_names: the images found there, relative names.
        names: all files found there.

    Returns:
        name -> caption, sorted by name; images without a caption are not in it.

    Raises:
        UserError: a file that cannot be read, a malformed line (with its number), a file listed twice, or one that is
            not in the folder.
    """
    tables = [name for name in names if posixpath.basename(name) in TABLES]
    captions = _from_tables(folder, tables, image_names)
    places = {posixpath.dirname(table) for table in tables}
    free = [name for name in image_names if not places & set(_folders_of(name))]
    return dict(sorted((captions | _from_texts(folder, free, names)).items()))


def read_table(path: pathlib.Path, image_names: Sequence[str]) -> dict[str, str]:
    """The captions of one table, .jsonl, .csv or .tsv, wherever it stands; errors are those of `read`.

    Args:
        path: of the table.
        image_names: as its names are to be taken.

    Returns:
        name -> caption, of images and of files that only the table has.
    """
    return _from_tables(path.parent, [path.name], image_names)


def missing(
    folder: pathlib.Path, image_names: Sequence[str], names: Sequence[str], captions: dict[str, str]
) -> str:
    """How many images have no caption and what to do about it; empty where all have one.

    What is said fits what was found: nobody is told to write a file that is there.
    """
    without = [name for name in image_names if name not in captions]
    if not without:
        return ""
    first, there = without[0], set(image_names)
    problem = f"{len(without)} of {len(image_names)} images in {folder} have no caption, the first is {first}"
    return f"{problem}; {_remedy(first, names, [name for name in captions if name not in there])}"


def _remedy(first: str, names: Sequence[str], not_there: list[str]) -> str:
    present = set(names)
    tables = [posixpath.join(place, table) for place in _folders_of(first) for table in TABLES]
    if table := next((t for t in tables if t in present), ""):
        wrong = f" (it names {not_there[0]}, which is not there)" if not_there else ""
        return f"give each a line in {table}{wrong}"
    if text := _texts(names).get(composed(first.rpartition(".")[0])):
        return f"{text} is empty: write the caption into it"
    if like := [n for n in names if posixpath.basename(n).startswith("metadata.")]:
        return f"{like[0]} is not read; rename or convert it to metadata.jsonl or metadata.csv"
    return "give each a .txt file beside it with a caption, or a line in metadata.jsonl"


def _folders_of(name: str) -> Iterator[str]:
    """The folders that a file is in, the nearest first, "" last."""
    while name:
        name = posixpath.dirname(name)
        yield name


def _from_tables(folder: pathlib.Path, tables: list[str], image_names: Sequence[str]) -> dict[str, str]:
    on_disk = {composed(name): name for name in image_names}
    captions: dict[str, str] = {}
    places: dict[str, str] = {}
    for table in tables:
        rows = _json_rows if table.lower().endswith(".jsonl") else _csv_rows
        for where, entry in rows(folder / table):
            name, caption = _parse(entry, where)
            name = _on_disk(_from(folder, posixpath.join(posixpath.dirname(table), name)), on_disk)
            if name in captions:
                raise UserError(f"{where}: {name} is already on {places[name]}; keep one line per image")
            captions[name], places[name] = caption, where.removeprefix(f"{folder / table} ")
    return captions


def _from(folder: pathlib.Path, name: str) -> str:
    """A table's name as it counts from the folder, of a whole path or one with ".." as well, where it leads into it."""
    name = posixpath.normpath(name)
    if not name.startswith(("/", "..")):
        return name
    for whole in (os.path.abspath, os.path.realpath):  # links are followed only where their own names lead out
        relative = os.path.relpath(whole(folder / name), whole(folder)).replace(os.sep, "/")
        if relative.partition("/")[0] != "..":
            return relative
    return name


def _on_disk(name: str, on_disk: dict[str, str]) -> str:
    """The file that a table means: separators of Windows are taken for slashes where that names a file."""
    name = posixpath.normpath(name)
    slashed = posixpath.normpath(name.replace("\\", "/"))
    return on_disk.get(composed(name)) or on_disk.get(composed(slashed)) or name


def _json_rows(path: pathlib.Path) -> Iterator[tuple[str, object]]:
    """(where, value) of each line that is not empty."""
    for number, line in enumerate(text_lines(read_text(path)), start=1):
        where = f"{path} line {number}"
        if not line.strip():
            continue
        try:
            yield where, json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            problem = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else "too deep"
            raise UserError(f"{where}: is not JSON ({problem}); give one object per line") from None


def _csv_rows(path: pathlib.Path) -> Iterator[tuple[str, dict]]:
    """(where, row) of a table with a header, separated by commas, semicolons or tabs."""
    lines = [line + "\n" for line in text_lines(read_text(path))]
    delimiter = next((d for d in ",;\t" if "file_name" in [c.strip(' "\n') for c in lines[0].split(d)]), "")
    if not delimiter:
        raise UserError(f"{path} line 1: has no column file_name; give a header such as file_name,text")
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        header = [column.strip() for column in next(reader)]
        for row in reader:
            if any(row):
                yield f"{path} line {reader.line_num}", dict(zip(header, row, strict=False))
    except csv.Error as error:
        remedy = "quote texts with commas, and write a quote in them twice"
        raise UserError(f"{path} line {reader.line_num}: is no table ({error}); {remedy}") from None


def _parse(entry: object, where: str) -> tuple[str, str]:
    """File name and caption of one line."""
    if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str) or not entry["file_name"]:
        raise UserError(f'{where}: has no "file_name"; give {{"file_name": "a.jpg", "text": "a caption"}}')
    for key in _CAPTION_KEYS:
        if isinstance(entry.get(key), str) and entry[key].strip():
            return entry["file_name"], _whole(entry[key].strip(), where)
    raise UserError(f'{where}: {entry["file_name"]} has no caption; expected a non-empty "text" or "caption"')


def _whole(caption: str, where: str) -> str:
    if not is_unicode(caption):
        raise UserError(f"{where}: the caption {caption!r} holds half a character; write it anew")
    return caption


def _texts(names: Sequence[str]) -> dict[str, str]:
    """{what comes before the suffix: name} of the text files; .txt goes before .caption."""
    texts = {}
    for suffix in reversed(_TEXT_SUFFIXES):
        texts |= {composed(name[: -len(suffix)]): name for name in names if name.lower().endswith(suffix)}
    return texts


def _from_texts(folder: pathlib.Path, image_names: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    texts = _texts(names)
    text_of = lambda name: texts.get(composed(name.rpartition(".")[0])) or texts.get(composed(name))
    found = {name: text for name in image_names if (text := text_of(name))} if texts else {}
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        read_one = lambda text: " ".join(read_text(folder / text).split())
        captions = dict(zip(found, pool.map(read_one, found.values()), strict=True))
    return {name: caption for name, caption in captions.items() if caption}
