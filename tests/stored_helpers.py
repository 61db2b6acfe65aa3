"""A run and an export as the version before wrote them, kept in tests/stored."""

import tarfile
from pathlib import Path

STORED = Path(__file__).parent / "stored"


def unpack(folder: Path) -> Path:
    """Unpacks `run`, `export` (both of the same small text model, of which adapter and biases were trained) and
    `pictures.npy`, what the export drew of "a frog on a red background" with key 0."""
    with tarfile.open(STORED / "previous_version.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder
