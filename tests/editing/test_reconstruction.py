"""Inversion and sampling under the source prompt give an embedded clip back, the better the more steps; table printed.

python -m pytest -m slow -s tests/editing/test_reconstruction.py      # minutes
"""

import pytest

from docs.video import reconstruction

STEPS = (10, 20, 50)


@pytest.mark.slow
def test_more_steps_lead_back_better_with_and_without_the_adapter(tmp_path):
    arms = ("off", "random", "shipped", "tuned")
    found = {arm: [reconstruction.measured(arm, 9, STEPS, 3, tmp_path)] for arm in arms}
    print("\n" + "\n".join(reconstruction.lines(found, STEPS)))
    for arm, (run,) in found.items():
        errors = [run[count]["from_latents"] for count in STEPS]
        assert errors == sorted(errors), arm
        # At 50 steps the process costs less than the autoencoder does.
        assert errors[-1] > run[50]["autoencoder"], arm
        assert run[50]["psnr"] > run[50]["autoencoder"] - 2.0, arm
