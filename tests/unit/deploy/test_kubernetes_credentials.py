"""Which proxy leads to an API server."""

import pytest
from daskfleet.deploy.kubernetes.credentials import proxy_for

PROXY = "http://proxy.example:3128"


@pytest.mark.parametrize(
    ("url", "no_proxy", "proxied"),
    [
        ("https://api.example:6443", "", True),
        ("https://10.1.2.3:6443", "localhost,.svc", True),
        ("https://10.1.2.3:6443", "localhost, 10.0.0.0/8,.svc", False),
        ("https://10.1.2.3:6443", "10.1.2.3", False),
        ("https://api.example:6443", ".example", False),
        ("https://[fd00::1]:6443", "fd00::/8", False),
        ("https://127.0.0.1:6443", "", False),
        ("https://localhost:6443", "", False),
        ("http://api.example:8080", "", False),
    ],
)
def test_the_environment_decides_as_it_does_for_kubectl(url, no_proxy, proxied, monkeypatch):
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    assert proxy_for(url) is None
    monkeypatch.setenv("HTTPS_PROXY", PROXY)
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert proxy_for(url) == (PROXY if proxied else None)
