"""What a compiled program needs, and whether the device has it: said before the program runs."""

from typing import Any

import jax

from contextdiff_jax.compilation import available, bytes_of
from contextdiff_jax.errors import UserError
from contextdiff_jax.runtime import here


def check(compiled: jax.stages.Compiled, what: str, window: int, limit: int | None = None) -> dict[str, int]:
    """`bytes_of`, if the device has as much.

    Args:
        compiled: a program over `window` frames.
        what: the program's name.
        window: frames that the network takes at once; temporaries grow with them.
        limit: bytes of the device; None asks it.

    Raises:
        UserError: it has not; the message says how many frames would fit.
    """
    needed, limit = bytes_of(compiled), available(here().local[0]) if limit is None else limit
    if needed["peak"] <= limit:
        return needed
    fixed = needed["arguments"] + needed["results"]
    fits = max(0, (limit - fixed) * window // max(needed["temporaries"], 1))
    remedy = f"about {fits} frames fit (data.num_frames={fits})" if fits > 1 else "take smaller frames"
    raise UserError(
        f"{what} of {window} frames needs {needed['peak'] / 2**30:.3g} GiB, the device has {limit / 2**30:.3g}; "
        f"{remedy}; data.length takes longer clips in windows"
    )


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
