"""The reference pages say what the code says."""

import subprocess
import sys
from pathlib import Path

from punie_protocol.messages import to_supervisor, to_worker

ROOT = Path(__file__).parents[2]


def test_reference_pages_are_not_stale() -> None:
    result = subprocess.run(
        [sys.executable, ROOT / "scripts" / "docs.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_every_message_is_documented() -> None:
    page = (ROOT / "docs" / "reference" / "protocol.md").read_text()
    for union in (to_supervisor.ToSupervisor, to_worker.ToWorker):
        for cls in union.__value__.__args__:
            assert cls.__doc__
            assert f"`{cls.__struct_config__.tag}`" in page
