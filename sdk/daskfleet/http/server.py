"""One HTTP server: its address, its socket, its answers to errors.

Everything a page refers to is relative, and redirects too, so that it all works behind a proxy that puts a path before
it (JupyterLab's, the Kubernetes API server's).
"""

from __future__ import annotations

import asyncio
import errno
import hmac
import json
import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tornado import httputil, web
from tornado.httpserver import HTTPServer
from tornado.routing import Router

from daskfleet.comm.addresses import parse_address
from daskfleet.comm.tcp import bind
from daskfleet.security import Security

logger = logging.getLogger(__name__)

#: Bytes of a request's head and of its body: a thousand workers' names fit in a query.
MAX_REQUEST = 1 << 20
#: Seconds that an idle connection is kept, and that a request's body may take.
IDLE, BODY = 75.0, 30.0
#: Shows the token where a proxy, as Kubernetes' API server is one, keeps ``Authorization`` for itself.
TOKEN_HEADER = "X-Daskfleet-Token"

#: A pattern, its handler, and perhaps arguments for the handler's ``initialize``.
Route = tuple[str, type[web.RequestHandler]] | tuple[str, type[web.RequestHandler], dict[str, Any]]


def parse_http_address(text: str) -> tuple[str, int]:
    """Read ``:8787``, ``8787``, ``127.0.0.1:8787`` or ``[::1]:8787`` as host (``""``: every interface) and port.

    Raises
    ------
    ValueError
        With a sentence that says what was expected instead.
    """
    host, _, port = str(text).strip().removeprefix("http://").rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"dashboard address {text!r}: expected something like :8787 or 127.0.0.1:8787")
    return parse_address(f"{host}:{port}").host if host else "", int(port)


class Mounts(Router):
    """An application, under a prefix too, and others below paths of their own."""

    def __init__(self, application: web.Application) -> None:
        self._application = application
        self.prefix = ""
        self.others: dict[str, web.Application] = {}

    def put_below(self, prefix: str | None) -> None:
        """Answer under a path such as ``"/dask"``, with slashes around it or without; None and ``""`` are for none."""
        path = (prefix or "").strip("/")
        self.prefix = f"/{path}" if path else ""

    def find_handler(self, request: httputil.HTTPServerRequest, **kwargs: Any) -> httputil.HTTPMessageDelegate | None:
        for path, other in self.others.items():
            if request.path == path or request.path.startswith(path + "/"):
                return other.find_handler(request, **kwargs)
        if self.prefix and (request.path == self.prefix or request.path.startswith(self.prefix + "/")):
            request.path = request.path[len(self.prefix) :] or "/"
        return self._application.find_handler(request, **kwargs)


class HttpService:
    """A running server; made by `start`.

    Attributes
    ----------
    port
        The port that was bound.
    """

    def __init__(
        self, server: HTTPServer, mounts: Mounts, port: int, on_stop: Sequence[Callable[[], None]] = ()
    ) -> None:
        self._server = server
        self.mounts = mounts
        self._on_stop = list(on_stop)
        self.port = port

    def stop(self) -> None:
        """Accept no more, and end the connections there are. Call it on the event loop."""
        self._server.stop()
        for callback in self._on_stop:
            callback()
        self._ending = asyncio.ensure_future(self._server.close_all_connections())


async def start(
    address: str,
    routes: Sequence[Route],
    *,
    usual_port: int,
    security: Security,
    on_stop: Sequence[Callable[[], None]] = (),
    **settings: Any,
) -> HttpService:
    """Serve `routes` at `address`; `settings` are at the handlers' disposal.

    `usual_port` is a habit rather than a demand: when it is taken, any free port is, with a warning that names both.

    Raises
    ------
    OSError
        Another port is taken, or the host is not this machine's; the message says which.
    ValueError
        `address` cannot be read.
    """
    host, port = parse_http_address(address)
    sock = _bind(host, port, usual_port)
    sock.setblocking(False)
    bound: int = sock.getsockname()[1]
    application = web.Application(
        list(routes), default_handler_class=NotFound, log_function=_log, security=security, **settings
    )
    mounts = Mounts(application)
    server = HTTPServer(
        mounts,
        max_header_size=MAX_REQUEST,
        max_body_size=MAX_REQUEST,
        idle_connection_timeout=IDLE,
        body_timeout=BODY,
    )
    server.add_sockets([sock])
    return HttpService(server, mounts, bound, on_stop)


def _bind(host: str, port: int, usual_port: int) -> socket.socket:
    try:
        return bind(host, port)
    except OSError as error:
        if error.errno != errno.EADDRINUSE or port != usual_port:
            reason = error.strerror or str(error)
            raise type(error)(
                error.errno,
                f"cannot serve the dashboard on {host or '*'}:{port}: {reason}; "
                "choose another --dashboard-address (port 0 takes any free one) or --no-dashboard",
            ) from None
    sock = bind(host, 0)
    logger.warning("port %d is taken; the dashboard is on port %d instead", port, sock.getsockname()[1])
    return sock


def _log(handler: web.RequestHandler) -> None:
    """Requests are not worth a line; failures of ours are logged where they happen (`Handler.log_exception`)."""


class Refused(web.HTTPError):
    """Answer with `status` and say `sentence`."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(status)
        self.sentence = sentence


class Handler(web.RequestHandler):
    """Answers errors with a sentence, and lets nobody sniff, frame scripts into, or cache what it says."""

    def set_default_headers(self) -> None:
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cache-Control", "no-store")
        self.clear_header("Server")

    def set_etag_header(self) -> None:
        """Nothing here is cached."""

    @property
    def security(self) -> Security:
        security: Security = self.application.settings["security"]
        return security

    def write_json(self, value: Mapping[str, Any] | Sequence[Any]) -> None:
        self.set_header("Content-Type", "application/json; charset=UTF-8")
        self.write(json.dumps(value, default=str))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None, None))[1]
        sentence = self._reason
        if isinstance(error, Refused):
            sentence = error.sentence
        elif error is not None and not isinstance(error, web.HTTPError):
            sentence = f"{type(error).__name__}: {error}"
        self.write_json({"Error": sentence})

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        if not isinstance(value, web.HTTPError):
            logger.error("%s %s failed", self.request.method, self.request.path, exc_info=(typ, value, tb))

    def require_token(self) -> None:
        """Refuse whoever does not show the cluster's token, if there is one."""
        token = self.security.token
        if token is None:
            return
        scheme, _, given = self.request.headers.get("Authorization", "").partition(" ")
        shown = self.request.headers.get(TOKEN_HEADER) or (given if scheme.lower() == "bearer" else "")
        if not hmac.compare_digest(shown.strip().encode(), token.encode()):
            self.set_header("WWW-Authenticate", "Bearer")
            raise Refused(401, "this changes the cluster: send its token in the header 'Authorization: Bearer …'")

    def json_body(self) -> dict[str, Any]:
        """The request's JSON object. A page of another site can make a browser post anything but this content type."""
        kind = self.request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refused(415, "send a JSON object with the header 'Content-Type: application/json'")
        try:
            body = json.loads(self.request.body)
        except ValueError as error:
            raise Refused(400, f"the body is not JSON: {error}") from None
        if not isinstance(body, dict):
            raise Refused(400, f"the body is a JSON {type(body).__name__}; expected an object")
        return body


class NotFound(Handler):
    def prepare(self) -> None:
        raise Refused(404, f"there is nothing at {self.request.path}; /sitemap.json lists what there is")


class Health(Handler):
    def get(self) -> None:
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        self.write("ok")


class Redirect(Handler):
    """To another page, named relative to this one; tornado's own redirects start at the root."""

    def initialize(self, to: str) -> None:
        self._to = to

    def get(self) -> None:
        self.set_status(302)
        self.set_header("Location", self._to)


class Sitemap(Handler):
    """``{"paths": […]}`` of all routes without parameters."""

    def get(self) -> None:
        self.write_json({"paths": self.application.settings["paths"]})
