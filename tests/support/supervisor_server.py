"""A model server for the supervisor's tests: ``GET /v1/models`` and nothing else.

``PORT [busy N] [silent] [exit CODE] [key K] [stubborn] [grandchild FILE] [noisy]``

busy N       answers 503 to the first N questions
silent       never listens
exit CODE    says a few lines, then ends
key K        answers 401 without ``Bearer K``
stubborn     ignores SIGTERM
grandchild F starts a process that sleeps, its pid into F
noisy        says 1000 lines first
"""

import http.server
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


class Server(http.server.ThreadingHTTPServer):
    """Counts what it answered."""

    daemon_threads = True
    busy = 0
    key = ""


class Handler(http.server.BaseHTTPRequestHandler):
    """One question."""

    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        code = 200 if self.path == "/v1/models" else 404
        if self.server.key and self.headers["Authorization"] != f"Bearer {self.server.key}":
            code = 401
        elif self.server.busy > 0:
            self.server.busy -= 1
            code = 503
        self.send_response(code)
        self.end_headers()
        self.wfile.write(b'{"data": []}')

    def log_message(self, format: str, *args: Any) -> None:
        pass


def main() -> None:
    port, words = int(sys.argv[1]), sys.argv[2:]
    options = dict(zip(words, [*words[1:], ""], strict=False))
    print("environment:", " ".join(sorted(os.environ)), "in", Path.cwd(), flush=True)
    if "noisy" in options:
        print("noise\n" * 1000, flush=True)
    if "exit" in options:
        print("no such model\nI give up", file=sys.stderr, flush=True)
        sys.exit(int(options["exit"]))
    if "stubborn" in options:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if file := options.get("grandchild"):
        child = subprocess.Popen(["sleep", "600"])
        Path(file).write_text(str(child.pid))
    if "silent" in options:
        time.sleep(600)
    server = Server(("127.0.0.1", port), Handler)
    server.busy, server.key = int(options.get("busy", 0)), options.get("key", "")
    server.serve_forever()


if __name__ == "__main__":
    main()
