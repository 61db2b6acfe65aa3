"""What drawing for users needs beside the sampler: batches of a stream, remembered prompts, steps that are told."""

import os
import time
import warnings
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from contextdiff_jax.samplers.sampling import Plan
from contextdiff_jax.training import sharding
from contextdiff_jax.types import Array, Context

CONTEXTS = 256  # encoded prompts that are remembered
OnStep = Callable[[int, int, np.ndarray], None]  # (step, steps, x0_hat [B, ...]) of a batch


class Drawn(NamedTuple):
    """A batch of a stream.

    Attributes:
        images: [B, H, W, C] in [-1, 1], their rows split over the devices.
        rows: which of the prompts the first len(rows) pictures belong to; what follows fills the batch up.
        span: begin and end of the drawing, seconds of `time.perf_counter`; None where it may still be on its way.
    """

    images: Array
    rows: np.ndarray
    span: tuple[float, float] | None = None

    def whole(self) -> np.ndarray:
        """The pictures that were asked for, float32 [len(rows), H, W, C], on every process; warns of NaN."""
        images = sharding.gather(self.images)[: len(self.rows)]
        if lost := [int(row) for row, image in zip(self.rows, images, strict=True) if not np.isfinite(image).all()]:
            some = f"{', '.join(map(str, lost[:8]))}{', ...' * (len(lost) > 8)} (counted from 0)"
            warnings.warn(f"{len(lost)} pictures hold NaN or infinite values and come out grey: {some}", stacklevel=2)
        return images


def sensible(devices: Iterable[jax.Device]) -> int:
    """How many batches at a time: a program leaves a third of a CPU's cores idle, which a second one can use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 2 if [d.platform for d in devices] == ["cpu"] and cores > 1 else 1


def at_once(batches: Iterable[Callable[[], Drawn]], count: int) -> Iterator[Drawn]:
    """The batches in their order, so many of them drawn at a time."""
    if count == 1:
        yield from (batch() for batch in batches)
        return
    running: deque[Future[Drawn]] = deque()
    with ThreadPoolExecutor(count) as pool:  # one thread's programs run one after another
        try:
            for batch in batches:
                running.append(pool.submit(_drawn, batch))
                if len(running) == count:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for left in running:
                left.cancel()


def _drawn(batch: Callable[[], Drawn]) -> Drawn:
    begin = time.perf_counter()
    drawn = jax.block_until_ready(batch())
    return drawn._replace(span=(begin, time.perf_counter()))


class Steps:
    """Tells `on_step` of the first prediction of every step of a plan.

    Compiled code calls it, where an error would come out as another one: it is kept, and raised by `finish`.
    """

    def __init__(self, plan: Plan, on_step: OnStep):
        self._left = {t: i for i, (t, _) in enumerate(plan.moves, 1)}
        self._steps, self._on_step = len(plan.moves), on_step
        # Heun's method asks again where a step ends, often the time at which the next one starts.
        self._again = Counter(s for t, s in plan.moves if s < t) if plan.sampler == "heun" else Counter()
        self._error: BaseException | None = None

    def __call__(self, t: Any, x0_hat: Any) -> None:
        if self._again[t := int(t)] > 0:
            self._again[t] -= 1
        elif (step := self._left.pop(t, None)) is not None and self._error is None:
            try:
                self._on_step(step, self._steps, np.asarray(x0_hat))
            except BaseException as error:
                self._error = error

    def finish(self) -> None:
        """Raises what `on_step` raised, if it did; nothing is told after that."""
        if self._error is not None:
            raise self._error


class Contexts:
    """Encoded prompts: the encoder is frozen, so each is encoded once and remembered, the last used longest.

    Args:
        encode: prompts -> their context on the devices, [B, ...], rows split.
    """

    def __init__(self, encode: Callable[[list[Any]], Context]):
        self._encode = encode
        self._kept: OrderedDict[str, Context] = OrderedDict()

    def clear(self) -> None:
        """Forgets all."""
        self._kept.clear()

    def of(self, prompts: list[Any]) -> Context:
        """The encoded prompts [B, ...], whole on the host."""
        # Layouts are lists: prompts are told apart by how they are written.
        named = {repr(prompt): prompt for prompt in prompts}
        missing = [prompt for name, prompt in named.items() if name not in self._kept]
        if missing:
            # Filled up to the size of the batch: one compilation.
            filled = missing + missing[-1:] * (len(prompts) - len(missing))
            encoded = jax.tree.map(sharding.gather, self._encode(filled))
            self._kept |= {repr(p): jax.tree.map(lambda v, i=i: v[i].copy(), encoded) for i, p in enumerate(missing)}
        found = [self._kept[repr(prompt)] for prompt in prompts]
        for name in named:
            self._kept.move_to_end(name)
        while len(self._kept) > max(CONTEXTS, len(prompts)):
            self._kept.popitem(last=False)
        return jax.tree.map(lambda *rows: np.stack(rows), *found)
