"""The fork server, but for one fault: in its workers the project half hangs when it is to read
`HANGING`, and is given `DEADLINE` seconds for any call rather than half a minute.

Started by the supervisor in the place of the real one (`benchmarks.daemon` with ``--hang``).
"""

from typing import Final

HANGING: Final = "hanging.py"
DEADLINE: Final = 0.5
"""Seconds."""
_FAULT: Final = f"""
from punie_workers.interp import files
def hang(root, path, *rest, real=files.read_file, **more):
    while path == {HANGING!r}:
        pass
    return real(root, path, *rest, **more)
files.read_file = hang
"""


def main() -> None:
    """Be the fork server."""
    from punie_workers import fork_server, project_half
    from punie_workers.half import CALL_TIMEOUT
    from punie_workers.halves import Halves

    bootstrap = project_half._bootstrap
    vars(project_half)["_bootstrap"] = lambda: bootstrap() + _FAULT
    assert Halves.call.__defaults__ == (CALL_TIMEOUT,)
    Halves.call.__defaults__ = (DEADLINE,)
    fork_server.main()


if __name__ == "__main__":
    main()
