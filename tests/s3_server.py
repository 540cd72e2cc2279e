"""An S3 server on loopback for tests: moto's, whose conditional requests are made to happen one after the other."""

import contextlib
import io
import threading
from collections.abc import Iterator

LEASE_S = 2


def environment(address: str) -> dict[str, str]:
    """Return what a process has to have in its environment to get there."""
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": "tester",
        "AWS_DEFAULT_REGION": "us-east-1",
        "ENSEMBLE_LEASE_SECONDS": str(LEASE_S),
    }


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """Run a server; gives its address."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Silent(WSGIRequestHandler):
        def log(self, *_: object) -> None:
            pass

    app = one_by_one(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Silent)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def one_by_one(app):
    """Let only one conditional request in at a time: moto looks first and writes then, S3 does both at once."""
    lock = threading.Lock()

    def serve(environ, start_response):
        if not ("HTTP_IF_MATCH" in environ or "HTTP_IF_NONE_MATCH" in environ):
            return app(environ, start_response)
        # Read before the lock is taken: a client that was stopped while it sends must not stop the others.
        environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
        with lock:
            return app(environ, start_response)

    return serve
