"""What the folder of a run holds, for the pages; whatever is not there is simply absent."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from contextdiff_jax.errors import UserError
from contextdiff_jax.evaluate.groups import Seen
from contextdiff_jax.evaluate.kept import read_kept
from contextdiff_jax.files import read_object
from contextdiff_jax.keys import leaves
from contextdiff_jax.training.provenance import read_records, read_starts


@dataclass(frozen=True)
class Run:
    """A run on disk.

    Attributes:
        folder: where it lies.
        config: of the training; {} if none is there.
        starts: about.json's, each with step, time, commit, hardware, versions.
        records: what tells its data from others.
        frozen: digests of frozen networks, by name.
        curves: {metric: (steps [N], values [N])}.
        figures: what eval.json holds; {} before an evaluation.
        seen, bits: pictures and marks of the evaluation, as `read_kept`.
        seed: of the evaluation's pictures; None before one.
        bench: what bench.json holds; {} without.
    """

    folder: Path
    config: dict[str, Any]
    starts: Sequence[Mapping[str, Any]]
    records: str
    frozen: Mapping[str, Any]
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]]
    figures: Mapping[str, Any]
    seen: Sequence[Seen]
    bits: Mapping[str, np.ndarray]
    seed: int | None
    bench: Mapping[str, Any]

    @classmethod
    def read(cls, folder: str | Path) -> "Run":
        """Reads a run's folder.

        Raises:
            UserError: no such folder, nothing of a run in it, or damaged files.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(f"run {str(folder)!r} does not exist; give the --workdir of a training or an evaluation")
        optional = lambda name: read_object(folder / name, "delete it") if (folder / name).is_file() else {}
        config, figures = optional("config.json"), optional("eval.json")
        if not config and not figures:
            raise UserError(f"{str(folder)!r} holds no run: neither config.json nor eval.json; give a --workdir")
        seen, bits, about = read_kept(folder / "eval")
        return cls(
            folder=folder,
            config=config,
            starts=read_starts(folder),
            records=read_records(folder),
            frozen=optional("frozen.json"),
            curves=read_curves(folder / "metrics.jsonl"),
            figures=figures,
            seen=seen,
            bits=bits,
            seed=about.get("seed"),
            bench=optional("bench.json"),
        )

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.folder.resolve().name

    def flat_config(self) -> dict[str, Any]:
        """{"section.key": value}."""
        return leaves(ConfigDict(self.config)) if self.config else {}

    def edits(self) -> list[Path]:
        """Folders of edited clips, newest last."""
        return sorted((file.parent for file in self.folder.glob("edit*/edit.json")), key=lambda p: p.stat().st_mtime)

    def previews(self) -> list[Path]:
        """Grids drawn during training, in order."""
        return sorted(self.folder.glob("previews/*.png"))


def read_curves(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Every metric of a metrics.jsonl; lines that a kill left half-written are skipped."""
    columns: dict[str, list[tuple[int, float]]] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                values = dict(json.loads(line))
                step = int(values.pop("step"))
            except (ValueError, KeyError, TypeError):
                continue
            for name, value in values.items():
                if isinstance(value, int | float):
                    columns.setdefault(name, []).append((step, float(value)))
    return {name: tuple(np.array(rows).T) for name, rows in columns.items()}
