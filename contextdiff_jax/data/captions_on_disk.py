"""Captions of an image folder: `metadata.jsonl`, or a text file beside each image."""

import json
import pathlib
import unicodedata

from contextdiff_jax.errors import UserError

METADATA = "metadata.jsonl"
_CAPTION_KEYS = ("text", "caption")


def read(folder: pathlib.Path, image_names: list[str]) -> dict[str, str]:
    """The caption of each image.

    Args:
        folder: root of the images.
        image_names: the images found there, relative names.

    Returns:
        name -> caption, sorted by name. A file that metadata.jsonl lists but the folder lacks is included.

    Raises:
        UserError: a malformed line (with its number), a file listed twice, an image without caption.
    """
    metadata = folder / METADATA
    captions = _from_metadata(metadata, image_names) if metadata.is_file() else _from_texts(folder, image_names)
    if missing := [name for name in image_names if name not in captions]:
        where = f"a line in {METADATA}" if metadata.is_file() else "a .txt file beside it with a caption"
        raise UserError(
            f"data.path: {len(missing)} of {len(image_names)} images in {folder} have no caption, "
            f"the first is {missing[0]}; give each {where}"
        )
    return dict(sorted(captions.items()))


def _from_metadata(path: pathlib.Path, image_names: list[str]) -> dict[str, str]:
    # Names may be written composed in the file and decomposed on the disk, or the other way round.
    on_disk = {unicodedata.normalize("NFC", name): name for name in image_names}
    captions: dict[str, str] = {}
    lines: dict[str, int] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        name, caption = _parse(line, where)
        name = on_disk.get(unicodedata.normalize("NFC", name), name)
        if name in captions:
            raise UserError(f"{where}: {name} is already on line {lines[name]}; keep one line per image")
        captions[name], lines[name] = caption, number
    return captions


def _parse(line: bytes, where: str) -> tuple[str, str]:
    """File name and caption of one line."""
    try:
        entry = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise UserError(f"{where}: is not UTF-8 text; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        problem = f"is not JSON ({error.msg}, column {error.colno})"
        raise UserError(f"{where}: {problem}; give one object per line") from None
    if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str) or not entry["file_name"]:
        raise UserError(f'{where}: has no "file_name"; give {{"file_name": "a.jpg", "text": "a caption"}}')
    for key in _CAPTION_KEYS:
        if isinstance(entry.get(key), str) and entry[key].strip():
            return pathlib.PurePosixPath(entry["file_name"]).as_posix(), entry[key].strip()
    raise UserError(f'{where}: {entry["file_name"]} has no caption; expected a non-empty "text" or "caption"')


def _from_texts(folder: pathlib.Path, image_names: list[str]) -> dict[str, str]:
    captions = {}
    for name in image_names:
        path = (folder / name).with_suffix(".txt")
        try:
            caption = " ".join(path.read_text(encoding="utf-8-sig").split())
        except FileNotFoundError:
            continue
        except UnicodeDecodeError:
            raise UserError(f"{path}: is not UTF-8 text; save the file as UTF-8") from None
        if caption:
            captions[name] = caption
    return captions
