"""Sets that tensorflow_datasets provides: it downloads and prepares each once, in TFDS_DATA_DIR or its own default.

Where several processes share that folder, prepare a set with one of them beforehand.
"""

import sys
from collections.abc import Callable
from typing import Any

from contextdiff_jax.errors import UserError

Reader = Callable[[int], dict[str, Any]]
_TENSORFLOW = "tensorflow" if sys.platform == "darwin" else "tensorflow-cpu"  # the latter has no build for macOS
INSTALL = f"pip install tensorflow-datasets importlib_resources {_TENSORFLOW}"


def labels(name: str, instead: str) -> tuple[str, ...]:
    """What a set's labels are called; nothing is downloaded.

    Args:
        name: of the set there.
        instead: what a user can do who has it not.

    Raises:
        UserError: tensorflow_datasets is missing.
    """
    return tuple(_library(name, instead).builder(name).info.features["label"].names)


def reader(name: str, split: str, instead: str, *, in_memory: bool) -> tuple[Reader, int]:
    """Random access to a split's records, and their number.

    Args:
        name, instead: as for `labels`.
        split: by its name there.
        in_memory: whether a set that was prepared as TFRecord, their default, which has no random access, is read into
            memory as a whole; else it is refused.

    Raises:
        UserError: tensorflow_datasets is missing or cannot provide the set.
    """
    library = _library(name, instead)
    try:
        builder = library.builder(name)
        if not builder.is_prepared():
            builder = library.builder(name, file_format="array_record")
            builder.download_and_prepare()
        if builder.info.file_format == library.core.FileFormat.ARRAY_RECORD:
            records = builder.as_data_source(split=split)
            return (lambda i: records[i]), len(records)
        if not in_memory:
            raise ValueError("it is prepared as TFRecord, which has no random access; prepare it as array_record")
        every = library.as_numpy(builder.as_dataset(split=split, batch_size=-1))
    except Exception as error:  # a download and a conversion: almost anything can be raised
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"data.source: tensorflow_datasets cannot provide {name} ({reason}); or {instead}") from error
    return (lambda i: {key: value[i] for key, value in every.items()}), len(every["label"])


def _library(name: str, instead: str) -> Any:
    try:
        import tensorflow_datasets
    except ImportError:
        raise UserError(f"data.source: {name} needs tensorflow_datasets; {INSTALL}, or {instead}") from None
    return tensorflow_datasets
