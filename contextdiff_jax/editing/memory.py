"""What a compiled program needs, and whether the device has it: said before the program runs."""

from typing import Any

import jax

from contextdiff_jax.compilation import check_memory, fewer_frames
from contextdiff_jax.runtime import here


def check(
    compiled: jax.stages.Compiled, what: str, window: int, limit: int | None = None, *, tuned: bool = False
) -> dict[str, int]:
    """`bytes_of`, if the device has as much.

    Args:
        compiled: a program over `window` frames.
        what: the program's name.
        window: frames that the network takes at once; temporaries grow with them.
        limit: bytes of the device; None asks it.
        tuned: whether the network takes as many because it was tuned so.

    Raises:
        UserError: it has not; the message says how many frames would fit.
    """

    def remedy(room: float) -> str:
        if room:
            return fewer_frames(window, tuned)(room)
        how = "tune anew on" if tuned else "take"  # what goes in and comes out grows with the clip
        return f"{how} fewer frames of the clip (a smaller data.length, a larger data.sampling_rate), or smaller ones"

    return check_memory(compiled, f"{what} of {window} frames", here().local[0], remedy, limit)


def peak_measured(device: Any) -> int | None:
    """The most bytes that were in use on the device since the process began, or None where it does not say (CPUs)."""
    return (device.memory_stats() or {}).get("peak_bytes_in_use")


def of_this_edit(device: Any, before: int | None) -> tuple[int | None, str]:
    """`peak_measured`, and why it is None; `before` the edit, of which the process may have needed as much."""
    peak = peak_measured(device)
    if peak is None:
        return None, f"memory measured: {device.device_kind} does not count it; memory_estimated is the compiler's"
    if peak == before:
        return None, "memory measured: this process had as much in use before the edit; run it by itself"
    return peak, ""
