"""The environment of a program in the sandbox: an allow-list. Pure."""

import os
import re
from collections.abc import Iterable, Mapping
from typing import Final

from punie_protocol.isolation import SandboxSettings

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where programs are besides what the user's ``PATH`` shows."""
_ALLOWED: Final = re.compile(r"LANG|LANGUAGE|LC_[A-Z]+|TZ|COLUMNS|LINES")
_NEVER: Final = re.compile(r"LD_.*|DYLD_.*|GCONV_PATH|GLIBC_TUNABLES")
"""Variables of the loader would act on the sandbox's own program, outside."""


def environment(
    outside: Mapping[str, str], home: str, programs: Iterable[str], settings: SandboxSettings
) -> dict[str, str]:
    """Return the whole environment: language and time zone of `outside`, the variables that
    `settings` name exactly, `home`, which is private, and on ``PATH`` the folders `programs`
    before the system's. Git would not look above the project for its repository, since that is
    mounted apart."""
    named = [name for name in settings.environment if name in outside and not _is_loader(name)]
    kept = [name for name in outside if _ALLOWED.fullmatch(name)]
    return {
        **{name: outside[name] for name in (*kept, *named)},
        "PATH": os.pathsep.join(dict.fromkeys([*programs, *PATH.split(":")])),
        "HOME": home,
        "TMPDIR": "/tmp",
        "TERM": "dumb",
        "GIT_DISCOVERY_ACROSS_FILESYSTEM": "1",
    }


def _is_loader(name: str) -> bool:
    return _NEVER.fullmatch(name) is not None
