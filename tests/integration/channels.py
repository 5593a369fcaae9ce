"""A server of channels, as channels.nixos.org is one: it redirects to releases."""

import io
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Channels:
    """What is served, by path, and where the channel at `url` redirects to."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.url = f"{origin}/channel"
        self.files: dict[str, bytes] = {}
        self.target = ""
        self.next_target = ""  # from the first answer on

    def release(self, name: str, commit: str, text: str) -> None:
        self.files[f"/releases/{name}/git-revision"] = commit.encode()
        self.files[f"/releases/{name}/nixexprs.tar.xz"] = _tar(text, "xz")

    def archive(self, commit: str, text: str) -> None:
        self.files[f"/archive/{commit}.tar.gz"] = _tar(text, "gz")

    def point(self, name: str, then: str = "") -> None:
        """Have the channel be at this release, and at the next as soon as somebody has asked."""
        self.target = f"{self.origin}/releases/{name}"
        self.next_target = f"{self.origin}/releases/{then}" if then else ""


def _tar(text: str, compression: str) -> bytes:
    """A tree with this expression, in the one directory of an archive."""
    out = io.BytesIO()
    mode: Any = f"w:{compression}"
    with tarfile.open(fileobj=out, mode=mode) as tar:
        entry = tarfile.TarInfo("set-1.0/default.nix")
        entry.size = len(text)
        tar.addfile(entry, io.BytesIO(text.encode()))
    return out.getvalue()


@contextmanager
def running_channels() -> Iterator[Channels]:
    """Serve on a free port of loopback from a thread."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            head = self.command == "HEAD"
            if channels.target and self.path.startswith("/channel/"):
                self.send_response(302)
                target = channels.target + self.path.removeprefix("/channel")
                self.send_header("location", target)
                self.send_header("content-length", "0")
                self.end_headers()
                channels.target = channels.next_target or channels.target
                return
            body = channels.files.get(self.path)
            self.send_response(404 if body is None else 200)
            self.send_header("content-length", str(len(body or b"")))
            self.end_headers()
            if body is not None and not head:
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    channels = Channels(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield channels
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
