"""The grids of times."""

import chex
import diffusers
import jax
import numpy as np
import pytest

from contextdiff_jax import samplers
from contextdiff_jax.errors import UserError
from contextdiff_jax.samplers.loop import most_steps, timesteps


@pytest.mark.parametrize("spacing", samplers.SPACINGS)
@pytest.mark.parametrize("T", [1, 2, 7, 33, 250])
def test_every_number_of_steps_falls_strictly_to_0(T, spacing):
    for num_steps in range(1, T + 1):
        grid = timesteps(T, num_steps, spacing)
        chex.assert_shape(grid, (num_steps + 1,))
        assert grid.dtype == np.int32 and grid[-1] == 0 and grid[-2] >= 1
        assert np.all(np.diff(grid) < 0)
        assert grid[0] == T or spacing == "leading"
    np.testing.assert_array_equal(timesteps(T, T, spacing), np.arange(T, -1, -1))


def test_the_ends_of_each_spacing():
    np.testing.assert_array_equal(timesteps(1000, 4, "uniform"), [1000, 667, 334, 1, 0])
    np.testing.assert_array_equal(timesteps(1000, 4, "trailing"), [1000, 750, 500, 250, 0])
    np.testing.assert_array_equal(timesteps(1000, 4, "leading"), [751, 501, 251, 1, 0])
    np.testing.assert_array_equal(timesteps(1000, 4, "leading", steps_offset=1), [752, 502, 252, 2, 0])
    np.testing.assert_array_equal(timesteps(1000, 1), [1000, 0])


@pytest.mark.parametrize("spacing, offset", [("leading", 0), ("leading", 1), ("trailing", 0)])
@pytest.mark.parametrize("num_steps", [3, 20, 50, 999])
def test_spacings_are_those_of_diffusers(num_steps, spacing, offset):
    theirs = diffusers.DDIMScheduler(num_train_timesteps=1000, timestep_spacing=spacing, steps_offset=offset)
    theirs.set_timesteps(num_steps)
    ours = timesteps(1000, num_steps, spacing, steps_offset=offset)
    np.testing.assert_array_equal(ours[:-1], np.asarray(theirs.timesteps)[:num_steps] + 1)


@pytest.mark.parametrize(
    "args, options, words",
    [
        ((10, 11), {}, "num_steps=11"),
        ((10, 0), {}, "num_steps=0"),
        ((10, 2.0), {}, "num_steps=2.0"),
        ((10, True), {}, "num_steps=True"),
        ((10, 2, "even"), {}, "uniform, trailing, leading"),
        ((10, 2, "leading"), dict(steps_offset=5), "steps_offset=5.* at most 1"),
        ((10, 2, "leading"), dict(steps_offset=-1), "steps_offset=-1.* from 0 to 9"),
        ((1000, 1000, "leading"), dict(steps_offset=1), "1000 leading steps .* at most 999"),
    ],
)
def test_bad_grids_are_user_errors(args, options, words):
    with pytest.raises(UserError, match=words):
        timesteps(*args, **options)


def test_the_largest_number_of_steps_that_is_named_fits():
    for T, offset in ((10, 1), (10, 4), (12, 2), (7, 6)):
        most = most_steps(T, T, "leading", offset)
        assert timesteps(T, most, "leading", steps_offset=offset)[0] <= T
        for more in range(most + 1, T + 1):
            assert 1 + offset + (more - 1) * (T // more) > T


def test_get_finds_samplers_by_name():
    for name in ("ddpm", "ddim", "heun", "dpmpp_2m"):
        assert samplers.get(name) is getattr(samplers, name)
    with pytest.raises(UserError, match="ddpm, ddim, heun, dpmpp_2m"):
        samplers.get("euler")


def test_num_steps_is_checked_before_tracing():
    with pytest.raises(UserError):
        jax.jit(lambda: timesteps(10, 20))()
