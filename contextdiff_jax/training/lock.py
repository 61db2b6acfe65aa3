"""One run per workdir."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from contextdiff_jax.errors import UserError


@contextlib.contextmanager
def exclusive(workdir: str | Path) -> Iterator[None]:
    """Holds `<workdir>/.lock`; the operating system lets go of it however the process ends.

    Raises:
        UserError: another process trains in this folder.
    """
    path = Path(workdir) / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"workdir {str(workdir)!r} is in use by process {file.read().strip() or 'unknown'}; "
                "wait for it, or take another --workdir"
            ) from None
        except OSError:
            # Some network file systems have no locks; training there is still possible.
            pass
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
