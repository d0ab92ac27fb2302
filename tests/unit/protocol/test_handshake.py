"""The handshake: who gets through, who does not, and what each is told."""

from __future__ import annotations

from typing import Any

import pytest
from daskfleet.protocol.frames import ProtocolError
from daskfleet.protocol.handshake import VERSION, AuthenticationError, Handshake
from hypothesis import assume, given
from hypothesis import strategies as st

tokens = st.none() | st.sampled_from(["a" * 64, "b" * 64, "ü"])


def shake(client: Handshake, server: Handshake) -> None:
    """Pass messages to and fro until both are done."""
    hello = server.receive([client.start()])
    proof = client.receive([hello])
    client.receive([server.receive([proof])])


@given(tokens, tokens)
def test_equal_tokens_and_only_those_get_through(ours: str | None, theirs: str | None) -> None:
    client, server = Handshake("client", ours), Handshake("server", theirs)
    if ours == theirs:
        shake(client, server)
        assert client.done and server.done
        return
    with pytest.raises(AuthenticationError):
        shake(client, server)
    assert not client.done and not server.done


@pytest.mark.parametrize(
    ("ours", "theirs", "text"),
    [
        (None, "token", r"asks for a token: pass security=Security\(token=...\) or set DASKFLEET_TOKEN"),
        ("token", None, "this side has a token but the server asks for none"),
        ("token", "other", "the server has another token than this side"),
    ],
)
def test_the_client_is_told_what_to_do(ours: str | None, theirs: str | None, text: str) -> None:
    with pytest.raises(AuthenticationError, match=text):
        shake(Handshake("client", ours), Handshake("server", theirs))


def test_a_client_that_proves_nothing_is_told_so() -> None:
    server = Handshake("server", "token")
    server.receive([Handshake("client", None).start()])
    with pytest.raises(AuthenticationError) as caught:
        server.receive([{"proof": b""}])
    assert caught.value.args[1] == {"error": "wrong token"}
    client = Handshake("client", "token")
    client._step = 1
    with pytest.raises(AuthenticationError, match="refused the connection: wrong token"):
        client.receive([caught.value.args[1]])


def test_a_proof_that_was_overheard_is_of_no_use() -> None:
    client, server = Handshake("client", "token"), Handshake("server", "token")
    hello = client.start()
    proof = client.receive([server.receive([hello])])
    another = Handshake("server", "token")
    another.receive([hello])
    with pytest.raises(AuthenticationError):
        another.receive([proof])


def test_a_proof_that_is_sent_back_is_of_no_use() -> None:
    # A stranger lets the server prove itself and returns that very proof as its own.
    server = Handshake("server", "token")
    hello: Any = server.receive([Handshake("client", None).start()])
    with pytest.raises(AuthenticationError):
        server.receive([{"proof": hello["proof"]}])


def test_the_token_never_travels() -> None:
    client, server = Handshake("client", "s3cret-token"), Handshake("server", "s3cret-token")
    first = client.start()
    second = server.receive([first])
    third = client.receive([second])
    assert b"s3cret" not in repr((first, second, third)).encode()


@pytest.mark.parametrize("proof", [None, 5, "text", b""])
def test_a_server_whose_proof_is_none_is_refused(proof: Any) -> None:
    client = Handshake("client", "token")
    client.start()
    with pytest.raises(AuthenticationError, match="another token"):
        client.receive([{"daskfleet": VERSION, "nonce": bytes(32), "token": True, "proof": proof}])


@pytest.mark.parametrize("side", ["client", "server"])
def test_another_version_is_named(side: str) -> None:
    with pytest.raises(ProtocolError, match=rf"version {VERSION + 1} .* version {VERSION}") as caught:
        Handshake(side, None).receive([{"daskfleet": VERSION + 1, "nonce": bytes(32)}])
    assert [message["daskfleet"] for message in caught.value.args[1:]] == ([VERSION] if side == "server" else [])


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("step", [0, 1])
@given(
    st.lists(
        st.none()
        | st.integers()
        | st.binary()
        | st.tuples(st.just("run"), st.just(()))
        | st.dictionaries(
            st.sampled_from(["daskfleet", "nonce", "proof", "token", "welcome", "error"]),
            st.none() | st.integers() | st.binary() | st.text() | st.booleans(),
        ),
        max_size=2,
    )
)
def test_whatever_else_comes_is_refused(side: str, step: int, messages: list[Any]) -> None:
    handshake = Handshake(side, "token")
    if step:
        partner = Handshake("server" if side == "client" else "client", "token")
        handshake.receive([partner.receive([handshake.start()])] if side == "client" else [partner.start()])
    assume(not any(type(message) is dict and message.get("welcome") is True for message in messages))
    with pytest.raises(ProtocolError):
        handshake.receive(messages)
    assert not handshake.done
