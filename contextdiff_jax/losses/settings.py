"""What the config's section `loss` accepts."""

from ml_collections import ConfigDict

from contextdiff_jax.errors import UserError
from contextdiff_jax.keys import Values

VALUES = Values(
    choices={
        "loss.objective": ("simple", "posterior", "nelbo"),
        "loss.weighting": ("constant", "prediction", "snr", "snr_plus_1", "min_snr", "p2", "vlb", "lemma4"),
    },
    not_negative="loss.gamma loss.num_times",
    fractions="loss.cond_drop_prob",
    whole="loss.num_times",
    needed="loss.objective loss.weighting loss.gamma loss.cond_drop_prob",
)


def check(config: ConfigDict) -> None:
    """Several times an example are for the bound.

    Raises:
        UserError: names the key, its value and the remedy.
    """
    if "process" in config and config.loss.num_times and config.loss.objective != "nelbo":
        raise UserError(f"config.loss.num_times={config.loss.num_times} is for config.loss.objective='nelbo'; use 0")
