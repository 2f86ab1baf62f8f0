# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""uploads.py PORT: an HTTP server that answers PUT and POST with the SHA-256 of what came."""

from __future__ import annotations

import hashlib
import http.server
import sys


class Uploads(http.server.BaseHTTPRequestHandler):
    """Bodies with a length, and chunked ones."""

    protocol_version = "HTTP/1.1"

    def chunks(self) -> bytes:
        """The body of a chunked request."""
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do_PUT(self) -> None:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = self.chunks()
        else:
            body = self.rfile.read(int(self.headers["Content-Length"]))
        answer = hashlib.sha256(body).hexdigest().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_POST = do_PUT


if __name__ == "__main__":
    http.server.ThreadingHTTPServer(("0.0.0.0", int(sys.argv[1])), Uploads).serve_forever()
