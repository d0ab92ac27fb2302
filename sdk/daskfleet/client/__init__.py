"""The client: `encode` turns calls and graphs into messages, `future` is what users hold, `client` talks."""

from daskfleet.client.client import Client

__all__ = ["Client"]
