"""A receiver of webhooks, on a thread of its own: takes what is posted, or answers as it is told to."""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

Answer = tuple[int, dict[str, str]]
"""Status and headers."""


class Receiver:
    """`with Receiver() as receiver`. Keeps every attempt, and every event that it took."""

    def __init__(self, decide: Callable[[dict[str, Any], int], Answer] | None = None) -> None:
        """`decide`: the answer to an event's attempt number so many, from 1."""
        self.decide = decide or (lambda event, attempt: (200, {}))
        self.attempts: list[tuple[float, dict[str, str], bytes]] = []
        """When each came, its headers in lower case, its body."""
        self.taken: list[dict[str, Any]] = []
        self.elsewhere = 0
        """Requests to another path than `/hook`."""
        self._lock = threading.Lock()
        receiver = self

        class Door(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, headers = receiver._on_post(self.path, dict(self.headers.items()), body)
                self.send_response(status)
                for name, value in {"Content-Length": "0", **headers}.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Door)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"

    def _on_post(self, path: str, headers: dict[str, str], body: bytes) -> Answer:
        event = json.loads(body)
        lower = {name.lower(): value for name, value in headers.items()}
        with self._lock:
            if path != "/hook":
                self.elsewhere += 1
            self.attempts.append((time.monotonic(), lower, body))
            number = sum(1 for _, sent, _ in self.attempts if sent["webhook-id"] == lower["webhook-id"])
        answer = self.decide(event, number)
        with self._lock:
            if 200 <= answer[0] < 300:
                self.taken.append(event)
        return answer

    def ids(self) -> list[str]:
        """The webhook-id of each attempt."""
        with self._lock:
            return [headers["webhook-id"] for _, headers, _ in self.attempts]

    def of(self, session: str) -> list[dict[str, Any]]:
        """The events of a session that were taken, in the order in which they were."""
        with self._lock:
            return [event for event in self.taken if event["session_id"] == session]

    def __enter__(self) -> "Receiver":
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
