"""What a run's folder holds beside its checkpoints: digests of what is frozen, the map to colours, the tuned clip."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from contextdiff_jax.conditions.spaces import RGB_MAP, Latents, Pixels, read_rgb_map, write_rgb_map
from contextdiff_jax.data import one_clip
from contextdiff_jax.errors import UserError
from contextdiff_jax.tasks import identity, warm_start
from contextdiff_jax.training import distributed
from contextdiff_jax.training.workdir import has_trained
from contextdiff_jax.types import Params


def keep(config: ConfigDict, workdir: Path, write: Callable[[Path], None]) -> None:
    """Compares, on all processes, what is frozen with what an earlier start has recorded, and has one of them write the
    rest. What an earlier start has put there counts once there is a checkpoint.

    Args:
        config: the whole config.
        workdir: the run's folder.
        write: what puts the rest there, see `of_one_process`.

    Raises:
        UserError: the run was started with others.
    """
    binding = has_trained(workdir) or (workdir / warm_start.EXPORT).is_file()
    with distributed.together():
        if distributed.is_primary() and not binding:
            for name in (one_clip.CLIP, RGB_MAP):
                (workdir / name).unlink(missing_ok=True)
    identity.check(workdir, config, binding)
    with distributed.together():
        if distributed.is_primary():
            write(workdir)


def of_one_process(config: ConfigDict, space: Pixels | Latents, frozen: Params, workdir: Path) -> None:
    """Which clip is tuned on, and the adapter's map from latents to colours, where there are such.

    Raises:
        UserError: the run has been trained with another map.
    """
    if config.data.source == "clip":
        one_clip.keep_identity(one_clip.clip_of(config.data), workdir)
    rgb_map = frozen["space"].get("rgb") if isinstance(space, Latents) else None
    if not rgb_map:
        return
    kept = read_rgb_map(workdir)
    if kept is not None and any(not np.array_equal(kept[name], rgb_map[name]) for name in rgb_map):
        raise UserError(
            f"{workdir} was trained with another map from latents to colours than {config.space.latents!r} "
            f"holds; put {workdir / RGB_MAP} back there, or take another --workdir"
        )
    write_rgb_map(rgb_map, workdir)
