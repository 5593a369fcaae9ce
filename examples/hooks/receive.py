#!/usr/bin/env python3
"""Receives a webhook of Grange's: checks the signature and its age, and prints the event.

receive.py PORT SECRET-FILE
"""

import hmac
import json
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

AGE_MAX_S = 300  # an older one may be somebody's replay
BODY_MAX = 1 << 20

SECRET = Path(sys.argv[2]).read_bytes().strip()


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(min(BODY_MAX, int(self.headers.get("content-length", 0))))
        at = self.headers.get("x-grange-timestamp", "")
        seal = hmac.new(SECRET, at.encode() + b"." + body, "sha256").hexdigest()
        said = self.headers.get("x-grange-signature", "")
        is_good = hmac.compare_digest(said.encode(), f"sha256={seal}".encode())
        if not is_good or abs(time.time() - float(at)) > AGE_MAX_S:
            self.send_error(403)
            return
        event = json.loads(body)
        print(event["id"], event["event"], event["project"], flush=True)
        self.send_response(204)
        self.end_headers()


HTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver).serve_forever()
