"""Projects with tests, each in an environment of its own that has pytest."""

import shutil
import sysconfig
import venv
from collections.abc import Mapping
from pathlib import Path

from tests.support.checking import write

_PACKAGES = ("_pytest", "pytest", "pluggy", "iniconfig", "packaging", "pygments")


def project(root: Path, files: Mapping[str, str], *, with_pytest: bool = True) -> Path:
    """Make a project of `files` with a ``.venv`` below `root`; return the root."""
    write(root, files)
    venv.create(root / ".venv", symlinks=True)
    if with_pytest:
        source = Path(sysconfig.get_path("purelib"))
        (packages,) = (root / ".venv" / "lib").glob("python*/site-packages")
        shutil.copy2(source / "py.py", packages)
        for name in _PACKAGES:
            for folder in (source / name, *source.glob(f"{name}-*.dist-info")):
                if folder.is_dir():
                    shutil.copytree(folder, packages / folder.name)
    return root
