"""Sets of pictures to be measured: a folder of files or an npz of arrays, read as a stream."""

import collections
import concurrent.futures
import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from contextdiff_jax.data import captions_on_disk
from contextdiff_jax.data.images import SUFFIXES, pictures_among, reason, square, to_rgb, upright
from contextdiff_jax.data.listing import files_below, listed
from contextdiff_jax.errors import UserError
from contextdiff_jax.evaluate import npz_pictures
from contextdiff_jax.files import read_text, text_lines, user_path
from contextdiff_jax.pictures import GRID

NAMED = 10  # files that a result lists
THREADS = 4
AHEAD = 2 * THREADS  # pictures that are decoded before they are asked for
BATCH_BYTES = 1 << 27  # of a batch at the most, one picture apart
TABLES = (".jsonl", ".csv", ".tsv")
FILMS = ("GIF", "TIFF", "WEBP", "PNG")  # formats whose other frames are other pictures
HASH = re.compile("[0-9a-fA-F]{8,}")
Batch = tuple[np.ndarray, list[dict[str, Any]]]


class PictureSet:
    """Pictures of one size, in the order of their names. After a pass over `batches` it knows what was in it.

    Files are turned as their EXIF says and laid on white; of several frames the first counts.

    Args:
        path: a folder (its subfolders too; the grid.png that --mode=sample puts there is left out), or an npz with one
            array [N, H, W, 3] of uint8, as ADM's samplers write it; without one [N, H, W] and 1 or 4 channels will do.
        crop: None takes pictures as they are; a number crops each to a square at its centre and resizes it (Lanczos).
        captions: "", or a text file with one caption a line in the order of the pictures, a table (.jsonl, .csv or
            .tsv) as folders of training pictures have it, or the folder itself, which has its captions as those have.

    Attributes:
        grids: names of the grids that were left out.
        n: pictures read.
        shape: (height, width) of the first.
        unreadable: (name, reason) of each file that was left out.
        films: names of files with several frames.
        digest: of all pixels in order, the first 16 digits of a SHA-256.

    Raises:
        UserError: nothing there, no pictures, captions that do not match.
    """

    def __init__(self, path: str | Path, crop: int | None = None, captions: str | Path = ""):
        self.path, self.crop = user_path(path), crop
        if crop is not None and crop < 8:
            raise UserError(f"crop={crop} pixels; give 8 or more, or leave it out to take pictures as they are")
        if not self.path.exists():
            raise UserError(f"pictures {str(path)!r} do not exist; give a folder of pictures or an npz file")
        self.names, self.grids = None, []
        if self.path.is_dir():
            names = pictures_among(files_below(self.path, "pictures"), self.path)
            self.names = [name for name in names if Path(name).name != GRID]
            self.grids = [name for name in names if Path(name).name == GRID]
        self.total = len(self.names) if self.names is not None else npz_pictures.find(self.path).shape[0]
        if not self.total:
            accepted = ", ".join(sorted(SUFFIXES))
            raise UserError(f"{str(path)!r} holds no pictures; accepted: {accepted}, or an npz of them")
        self.captions = captions_of(Path(captions), self.names, self.total) if str(captions) else None
        self._start()

    def _start(self) -> None:
        """Nothing is known of the pictures yet."""
        self.n, self.shape, self.unreadable, self.films = 0, None, [], []
        self._digest = hashlib.sha256()

    @property
    def digest(self) -> str:
        """Of all pixels in order."""
        return self._digest.hexdigest()[:16]

    def batches(self, size: int) -> Iterator[Batch]:
        """(images uint8 [B, H, W, 3], records with "index", "name" and maybe "caption"), B at most `size`, and fewer of
        large pictures.

        Raises:
            UserError: pictures of two sizes, or none that can be read.
        """
        self._start()
        pictures = self._from_folder() if self.names is not None else self._from_npz(size)
        if first := next(pictures, None):
            pictures, size = itertools.chain([first], pictures), max(1, min(size, BATCH_BYTES // first[0].nbytes))
        while batch := list(itertools.islice(pictures, size)):
            self.n += len(batch)
            images = np.stack([image for image, _ in batch])
            self._digest.update(images)
            yield images, [record for _, record in batch]
        if not self.n:
            named = listed([f"{name} ({why})" for name, why in self.unreadable])
            raise UserError(
                f"none of {self.total} pictures in {str(self.path)!r} can be read: {named}; look at the files"
            )

    def described(self) -> dict[str, Any]:
        """What a result says of the set."""
        shape = list(self.shape or ())
        about = {"path": str(self.path), "n": self.n, "digest": self.digest, "size": shape, "crop": self.crop_rule}
        about["decoded"] = "transparency on white" + ", upright by EXIF" * (self.names is not None)
        if self.films:
            about["first_of_several_frames"] = {"count": len(self.films), "first": self.films[:NAMED]}
        if self.grids:
            about["grids_left_out"] = self.grids[:NAMED]
        if self.unreadable:
            left_out = [f"{name}: {reason}" for name, reason in self.unreadable[:NAMED]]
            about["unreadable"] = {"count": len(self.unreadable), "first": left_out}
        return about

    @property
    def crop_rule(self) -> str:
        """In words."""
        return "none" if self.crop is None else f"centre square, Lanczos, {self.crop}"

    def _record(self, index: int, name: str) -> dict[str, Any]:
        record = {"index": index, "name": name}
        return record if self.captions is None else record | {"caption": self.captions[index]}

    def _checked(self, image: np.ndarray, name: str) -> np.ndarray:
        shape = image.shape[:2]
        if self.shape is None:
            self.shape, self._first = shape, name
        if shape != self.shape:
            raise UserError(
                f"{str(self.path)!r} mixes sizes: {self._first} is {self.shape[1]} x {self.shape[0]} and {name} is "
                f"{shape[1]} x {shape[0]}; crop all to one size, e.g. --crop={min(*shape, *self.shape)}"
            )
        return image

    def _from_folder(self) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
        """Decoded in threads, a few ahead: pictures may be large."""
        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            todo, waiting = enumerate(self.names), collections.deque()
            submit = lambda some: waiting.extend((i, pool.submit(self._read, name)) for i, name in some)
            submit(itertools.islice(todo, AHEAD))
            while waiting:
                i, future = waiting.popleft()
                found, several = future.result()
                submit(itertools.islice(todo, 1))
                if several:
                    self.films.append(self.names[i])
                if isinstance(found, str):
                    self.unreadable.append((self.names[i], found))
                else:
                    yield self._checked(found, self.names[i]), self._record(i, self.names[i])

    def _read(self, name: str) -> tuple[np.ndarray | str, bool]:
        """A file's pixels, or why they cannot be had; and whether it has other frames."""
        try:
            with PIL.Image.open(self.path / name) as image:
                several = image.format in FILMS and getattr(image, "is_animated", False)
                if self.crop is not None:
                    return square(image, self.crop), several
                return np.asarray(to_rgb(upright(image))), several
        except Exception as error:  # decoders raise almost anything on damaged files
            return reason(error), False

    def _from_npz(self, size: int) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
        """Read through the archive a few pictures at a time: 50,000 of them are never in memory."""
        index = 0
        for block in npz_pictures.rows(self.path, size):
            for image in block:
                image = image if self.crop is None else square(PIL.Image.fromarray(image), self.crop)
                yield self._checked(image, f"picture {index}"), self._record(index, str(index))
                index += 1


def stamp(path: str | Path) -> str:
    """What changes when files are written: a hash of names, sizes and times, of a file or all below a folder; empty
    without a path."""
    if not str(path):
        return ""
    root = user_path(path)
    names = files_below(root, "pictures") if root.is_dir() else [""]
    states = ((name, (root / name).stat()) for name in names if (root / name).exists())
    found = [(name, state.st_size, state.st_mtime_ns) for name, state in states]
    return hashlib.sha256(repr((str(root.resolve()), found)).encode()).hexdigest()[:16]


def captions_of(path: Path, names: Sequence[str] | None, total: int) -> list[str]:
    """One caption per picture, in their order.

    Raises:
        UserError: a kind of file that is not read, captions that do not match, or lines of which nobody can say whose
            they are.
    """
    path = user_path(path)
    if path.is_dir() and names is not None:
        beside = captions_on_disk.read(path, names, files_below(path, "captions"))
        return _matched([beside.get(name, "") for name in names], path, names, total)
    if path.suffix.lower() in TABLES:
        if names is None:
            raise UserError(f"captions {str(path)!r} name files, which an npz has not; give one caption a line")
        by_name = captions_on_disk.read_table(path, names)
        return _matched([by_name.get(name, "") for name in names], path, names, total)
    text = read_text(path).rstrip()
    lines = text_lines(text) if text else []
    _check_lines(path, lines)
    if names is not None:
        _check_order(path, names)
    return _matched([line.strip() for line in lines], path, names, total)


def _check_lines(path: Path, lines: Sequence[str]) -> None:
    """Raises UserError for a table that is none by its name: its lines would be taken for captions."""
    objects = all(line.lstrip().startswith("{") for line in lines if line.strip()) and any(map(str.strip, lines))
    columns = re.split("[,;\t]", lines[0]) if lines else []
    if path.suffix.lower() == ".json" or objects:
        raise UserError(
            f"captions {str(path)!r} are JSON; give one object a line, with file_name and text, and name it .jsonl"
        )
    if len(columns) > 1 and "file_name" in [column.strip(' "') for column in columns]:
        raise UserError(f"captions {str(path)!r} are a table with a column file_name; name it .csv or .tsv")


def _check_order(path: Path, names: Sequence[str]) -> None:
    """Raises UserError where counting orders names otherwise than sorting does: the lines may follow either. Names that
    differ in more than their numbers, and hashes, nobody counts."""
    by_number = lambda name: [int(part) if i % 2 else part for i, part in enumerate(re.split("([0-9]+)", name))]
    numbered: dict[str, list[str]] = {}
    for name in names:
        numbered.setdefault(re.sub("[0-9]+", "#", name), []).append(name)
    for alike in numbered.values():
        if len({len(name) for name in alike}) == 1 and HASH.fullmatch(Path(alike[0]).stem):
            continue
        if moved := [(a, b) for a, b in zip(alike, sorted(alike, key=by_number), strict=True) if a != b]:
            sorted_by, counted_by = moved[0]
            raise UserError(
                f"captions {str(path)!r} have one line a picture, but {sorted_by} comes before {counted_by} by letters "
                "and after it by numbers; fill the names up with zeros, or give a table with file names"
            )


def _matched(found: list[str], path: Path, names: Sequence[str] | None, total: int) -> list[str]:
    """The captions, one of each picture."""
    if len(found) != total:
        raise UserError(f"captions {str(path)!r} has {len(found)} lines for {total} pictures; give one for each")
    if empty := [i for i, caption in enumerate(found) if not caption.strip()]:
        which = names[empty[0]] if names is not None else f"picture {empty[0]}"
        raise UserError(f"captions {str(path)!r} have none for {len(empty)} of {total} pictures, the first is {which}")
    return found
