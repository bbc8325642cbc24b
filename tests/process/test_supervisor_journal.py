"""What the journal acknowledged survives kill -9 of the writer."""

import asyncio
import subprocess
import sys
from pathlib import Path

from punie_supervisor import journal_ops as ops
from punie_supervisor.journal import Journal

WRITER = """
import asyncio, sys
from pathlib import Path
from punie_protocol.messages.common import Isolation
from punie_supervisor import journal_ops as ops
from punie_supervisor import journal_projects as projects
from punie_supervisor.journal import Journal

async def main():
    journal = await Journal.open(Path(sys.argv[1]))
    await journal.run(projects.ensure_project, "p", "/p", Isolation.PROCESS)
    await journal.run(ops.create_session, "s", "p")
    await journal.run(ops.accept_prompt, "q", "s", b"{}", "t")
    ordinal = 0
    while True:
        futures = []
        for _ in range(7):
            data = b"%d" % ordinal
            futures.append(await journal.submit(ops.store_delta, "s", ordinal, "q", data))
            ordinal += 1
        for future in futures:
            await future
        print(ordinal, flush=True)

asyncio.run(main())
"""


def test_kill_9_of_the_writer_loses_nothing_acknowledged(tmp_path: Path):
    path = tmp_path / "journal.db"
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout
    for line in writer.stdout:
        if int(line) > 200:
            break
    writer.kill()
    rest = writer.stdout.read().split()
    writer.stdout.close()
    writer.wait()
    acknowledged = int(rest[-1]) if rest else int(line)

    async def read() -> list[bytes]:
        journal = await Journal.open(path)
        try:
            return await journal.run(ops.deltas, "s")
        finally:
            await journal.close()

    found = asyncio.run(read())
    assert len(found) >= acknowledged
    assert found == [b"%d" % ordinal for ordinal in range(len(found))]
