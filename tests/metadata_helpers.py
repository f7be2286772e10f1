"""Google Cloud's metadata server, played on loopback by a server that answers when a value changes."""

import http.server
import threading
import urllib.parse

TERMINATE = "TERMINATE_ON_HOST_MAINTENANCE"
LINE = f"Google Cloud is about to take this machine away (maintenance-event {TERMINATE})"


class Server(http.server.ThreadingHTTPServer):
    """A server that does not mind when nobody waits any longer for its answer."""

    def handle_error(self, *_):
        pass


class Metadata:
    """The server: `values` are what it has, `asked` the paths that it was asked for, `odd` its next answers instead."""

    def __init__(self):
        self.values = {"maintenance-event": "NONE", "preempted": "FALSE"}
        self.changed, self.asked, self.odd = threading.Condition(), [], []
        self._server = Server(("127.0.0.1", 0), self._handler())
        self.host = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=[0.01], daemon=True).start()

    def set(self, kind: str, value: str) -> None:
        """Changes a value; who waits for that gets it."""
        with self.changed:
            self.values[kind] = value
            self.changed.notify_all()

    def wait_until_asked(self, times: int) -> None:
        """Waits until so many questions have come."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.asked) >= times, 20), self.asked

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(metadata):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                if self.headers["Metadata-Flavor"] != "Google":
                    return self.send_error(403)
                path, _, query = self.path.partition("?")
                kind, query = path.removeprefix("/computeMetadata/v1/instance/"), dict(urllib.parse.parse_qsl(query))
                with metadata.changed:
                    metadata.asked.append(path)
                    metadata.changed.notify_all()
                    odd = metadata.odd.pop(0) if metadata.odd else None
                    tag = query["last_etag"] if query["wait_for_change"] == "true" else ""
                    if not odd:
                        metadata.changed.wait_for(lambda: metadata.values[kind] != tag, float(query["timeout_sec"]))
                if odd:
                    return odd(self)
                self.answer(200, metadata.values[kind])

            def answer(self, status, value):
                self.send_response(status)
                self.send_header("ETag", value)
                self.send_header("Content-Length", str(len(value)))
                self.end_headers()
                self.wfile.write(value.encode())

            def log_message(self, *_):
                pass

        return Handler
