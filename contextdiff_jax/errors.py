"""The one error that users see as a single line."""


class UserError(ValueError):
    """Bad input that the user can put right.

    The message is one line that names the thing, its value and the remedy. The command line prints it and exits with
    status 2; in a notebook it is an ordinary exception.
    """
