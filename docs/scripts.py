"""What the programs in docs/ share."""

from collections.abc import Callable

from contextdiff_jax import command_line
from contextdiff_jax.errors import UserError


def run(main: Callable[[], None]) -> None:
    """Runs a program; what a user got wrong is one line and exit status 2, as on the command line."""
    try:
        main()
    except UserError as error:
        command_line.fail(error)
