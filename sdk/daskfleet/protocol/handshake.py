"""How two peers make sure of each other before either reads a pickle.

Pickles are remote code, so a connection on which they travel proves a shared token first. Each side sends a fresh nonce
and then an HMAC over both nonces, keyed by the token and marked with the side it is from, so that neither proof can be
replayed or reflected; the token itself never travels. The first frame of each side says the protocol's name and
version, which turns "another program on that port" into a sentence. Without TLS the proof guards against strangers, not
against somebody who can rewrite packets on the way: that is what TLS is for.

    client -> server   {"daskfleet": 1, "nonce": …}
    server -> client   {"daskfleet": 1, "nonce": …, "token": bool, "proof": HMAC(server)}
    client -> server   {"proof": HMAC(client)}            ("" when neither side has a token)
    server -> client   {"welcome": true}  or  {"error": …}

The first message of each side may also name the codecs that it offers for compression.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from typing import Any

from daskfleet.protocol.compression import in_common
from daskfleet.protocol.frames import Message, ProtocolError

VERSION = 1
#: Bytes, the largest frame that is read from a peer that has not proved itself.
LIMIT = 4096


class AuthenticationError(ProtocolError):
    """The peer has another token than ours, or only one of the two has one."""


def _proof(token: str, side: str, client_nonce: bytes, server_nonce: bytes) -> bytes:
    material = b"daskfleet|" + side.encode() + b"|" + client_nonce + server_nonce
    return hmac.digest(token.encode(), material, hashlib.sha256)


def _hello(messages: list[Message], *answer: Any) -> dict[str, Any]:
    """The peer's first message; `answer` is what a peer of another version should be told."""
    match messages:
        case [{"daskfleet": int(version), "nonce": bytes(nonce), **rest}] if len(nonce) == 32:
            if version != VERSION:
                raise ProtocolError(
                    f"the peer speaks version {version} of the protocol, this is version {VERSION}: install the same "
                    "daskfleet on both sides",
                    *answer,
                )
            return {str(name): value for name, value in rest.items()} | {"nonce": nonce}
    raise ProtocolError("the peer does not speak daskfleet's protocol")


class Handshake:
    """One side of the exchange; feed it what arrives, send what it returns, until `done`.

    Parameters
    ----------
    side
        ``"client"`` for the side that connected, ``"server"`` for the one that accepted.
    token
        The shared secret, or None to accept anybody.
    codecs
        Offered for compression (`daskfleet.protocol.compression`).

    Attributes
    ----------
    codec
        What both sides offer, None if that is nothing.
    """

    def __init__(self, side: str, token: str | None, codecs: Sequence[str] = ()) -> None:
        self.side, self.token, self.done = side, token, False
        self._offer = {"compression": tuple(codecs)} if codecs else {}
        self.codec: str | None = None
        self._nonce = secrets.token_bytes(32)
        self._expected = b""
        self._step = 0

    def start(self) -> Any:
        """The client's first message."""
        return {"daskfleet": VERSION, "nonce": self._nonce, **self._offer}

    def _agree(self, hello: dict[str, Any]) -> None:
        self.codec = in_common(self._offer.get("compression", ()), hello.get("compression"))

    def receive(self, messages: list[Message]) -> Any | None:
        """Take the peer's frame and return the answer to send, or None.

        Raises
        ------
        ProtocolError
            The peer is something else than daskfleet, or of another version.
        AuthenticationError
            The tokens differ. The `args[1]` of both errors, if any, is a message to send before closing.
        """
        self._step += 1
        return self._as_server(messages) if self.side == "server" else self._as_client(messages)

    def _as_server(self, messages: list[Message]) -> Any | None:
        if self._step == 1:
            hello = _hello(messages, self.start())
            client_nonce = hello["nonce"]
            self._agree(hello)
            reply = {**self.start(), "token": self.token is not None, "proof": b""}
            if self.token is not None:
                self._expected = _proof(self.token, "client", client_nonce, self._nonce)
                reply["proof"] = _proof(self.token, "server", client_nonce, self._nonce)
            return reply
        match messages:
            case [{"proof": bytes(proof)}] if self.token is None or hmac.compare_digest(proof, self._expected):
                self.done = True
                return {"welcome": True}
        raise AuthenticationError("the peer did not prove the token", {"error": "wrong token"})

    def _as_client(self, messages: list[Message]) -> Any | None:
        if self._step == 1:
            hello = _hello(messages)
            self._agree(hello)
            if not hello.get("token"):
                if self.token is not None:
                    raise AuthenticationError(
                        "this side has a token but the server asks for none: is it the right one?"
                    )
                return {"proof": b""}
            if self.token is None:
                raise AuthenticationError(
                    "the server asks for a token: pass security=Security(token=...) or set DASKFLEET_TOKEN"
                )
            expected = _proof(self.token, "server", self._nonce, hello["nonce"])
            proof = hello.get("proof")
            if not isinstance(proof, bytes) or not hmac.compare_digest(proof, expected):
                raise AuthenticationError("the server has another token than this side")
            return {"proof": _proof(self.token, "client", self._nonce, hello["nonce"])}
        match messages:
            case [{"welcome": True}]:
                self.done = True
                return None
            case [{"error": str(text)}]:
                raise AuthenticationError(f"the server refused the connection: {text}")
        raise ProtocolError("the peer does not speak daskfleet's protocol")
