"""What a run tells while it runs: a bar or plain lines, metrics.jsonl, TensorBoard."""

import contextlib
import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from absl import logging
from tqdm import tqdm

from contextdiff_jax.files import atomic
from contextdiff_jax.runtime import here
from contextdiff_jax.training import distributed
from contextdiff_jax.training.event_files import TensorBoard
from contextdiff_jax.training.step import is_maximum

_MIB = 2**20


class Metrics:
    """Writes the metrics of one run; on every process but the first it only keeps time.

    A run that continues from step n drops what an earlier process had written for later steps, so that every
    step appears once.

    Args:
        workdir: the run's folder.
        start: the step from which the run (re)starts.
        total: the step at which it ends.
        batch_size: images per step, of all processes.
    """

    def __init__(self, workdir: str | Path, start: int, total: int, batch_size: int):
        self._primary, self._total, self._batch_size = distributed.is_primary(), total, batch_size
        self._window: list[dict[str, jax.Array]] = []
        self._restart()
        if not self._primary:
            return
        self._path = Path(workdir) / "metrics.jsonl"
        drop_after(self._path, start)
        self._unwritten: list[str] = []
        self._complained: set[str] = set()
        self._tensorboard = TensorBoard(Path(workdir) / "tensorboard", start + 1)
        self._tty = sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            initial=start,
            unit="step",
            disable=not self._tty,
            dynamic_ncols=True,
            file=sys.stderr,
        )

    def _restart(self) -> None:
        """A new timing window."""
        self._since, self._steps = time.perf_counter(), 0

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """A context whose duration does not count as step time."""
        entered = time.perf_counter()
        yield
        self._since += time.perf_counter() - entered

    def add(self, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of one step; they stay on the devices until `log`."""
        self._window.append(metrics)
        self._steps += 1
        if self._primary:
            self._bar.update()

    def log(self, step: int) -> None:
        """Fetches, averages over the steps since the last call (or takes the largest value), and writes."""
        window = jax.device_get(self._window)
        elapsed, steps = time.perf_counter() - self._since, self._steps
        self._window = []
        self._restart()
        if not self._primary or not window:
            return
        values = {}
        for name in sorted(window[0]):
            column = [float(m[name]) for m in window]
            values[name] = max(column) if is_maximum(name) else sum(column) / len(column)
        values["lr"] = float(window[-1]["lr"])
        speed = steps / max(elapsed, 1e-9)
        values |= {
            "images_per_second": speed * self._batch_size,
            "step_ms": 1000 / speed,
            "peak_memory_mib": peak_memory() / _MIB,
        }
        self._write(step, values)
        self._show(step, values, speed)

    def note(self, step: int, values: dict[str, float]) -> None:
        """Figures that are not of every step: a line of their own in both files and on the screen."""
        if self._primary:
            self._write(step, values)
            self.say(f"step {step}/{self._total}  " + "  ".join(f"{name} {v:.4g}" for name, v in values.items()))

    def _write(self, step: int, values: dict[str, float]) -> None:
        """Both files; what cannot be written to metrics.jsonl now is written with the next, or at the end."""
        # JSON has no word for what is not finite.
        rounded = {name: float(f"{v:.7g}") if math.isfinite(v) else None for name, v in values.items()}
        self._unwritten.append(json.dumps({"step": step, **rounded}, allow_nan=False) + "\n")
        self._try("jsonl", f"THE METRICS OF STEP {step} WERE NOT WRITTEN", self._append)
        to_tensorboard = lambda: self._tensorboard.write(step, values)
        self._try("tensorboard", f"STEP {step} IS MISSING IN TENSORBOARD'S FILE", to_tensorboard)

    def _append(self) -> None:
        """What metrics.jsonl has not yet."""
        append_whole(self._path, "".join(self._unwritten))
        self._unwritten = []

    def _try(self, file: str, complaint: str, write: Callable[[], None]) -> None:
        """Writes; that the disk refuses is said once, until it takes something again."""
        try:
            write()
        except OSError as error:
            if file not in self._complained:
                self.say(f"{complaint}: {error}; training goes on, and tries again")
            self._complained.add(file)
        else:
            self._complained.discard(file)

    def _show(self, step: int, values: dict[str, float], speed: float) -> None:
        """The bar's figures, or one line where nobody watches a terminal."""
        images = values["images_per_second"]
        loss, images = f"{values['loss']:.4g}", f"{images:.0f}" if images >= 100 else f"{images:.3g}"
        if self._tty:
            self._bar.set_postfix_str(f"loss {loss}, {images} images/s")
            return
        left = tqdm.format_interval((self._total - step) / speed)
        self._bar.write(
            f"step {step}/{self._total}  loss {loss}  {images} images/s  {values['step_ms']:.0f} ms/step  ETA {left}",
            file=sys.stderr,
        )

    def say(self, text: str) -> None:
        """One line on standard error that does not tear the bar."""
        if self._primary:
            self._bar.write(text, file=sys.stderr)
            sys.stderr.flush()

    def close(self) -> None:
        """Writes what is left, and ends the bar and the TensorBoard file."""
        if not self._primary:
            return
        if self._unwritten:
            try:
                self._append()
            except OSError as error:
                self.say(f"THE LAST {len(self._unwritten)} LINES OF {self._path} WERE NOT WRITTEN: {error}")
        self._bar.close()
        self._tensorboard.close()


def append_whole(path: Path, text: str) -> None:
    """Appends all of `text`, or nothing.

    Raises:
        OSError: it cannot be written.
    """
    before = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError:
        with contextlib.suppress(OSError):
            os.truncate(path, before)
        raise


def drop_after(path: Path, step: int) -> None:
    """Removes the lines of later steps, and one that a kill left half-written, from a metrics.jsonl; where the disk
    refuses that, which is logged, they stay."""
    try:
        before = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        kept = "".join(line + "\n" for line in before.splitlines() if _is_until(line, step))
        if kept != before:
            with atomic(path) as temporary:
                temporary.write_text(kept, encoding="utf-8")
    except OSError as error:
        logging.warning("%s cannot be rewritten (%s): lines of steps after %d stay in it", path, error, step)


def _is_until(line: str, step: int) -> bool:
    """Whether a line is whole, and of a step up to this one."""
    try:
        return json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False


def peak_memory() -> int:
    """Bytes at the peak: of this process's fullest accelerator, or of the process itself on CPUs."""
    stats = [device.memory_stats() or {} for device in here().local]
    peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return max(peaks) if peaks else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
