"""JupyterLab below the scheduler's dashboard, at ``/jupyter``."""

from __future__ import annotations

import logging
from typing import Any

from daskfleet.security import new_token

logger = logging.getLogger("daskfleet.scheduler")


def serve(scheduler: Any) -> None:
    """Serve JupyterLab by the scheduler's own HTTP server.

    Raises
    ------
    ValueError
        It is not installed.
    """
    guard = scheduler.security
    try:
        from jupyter_server.serverapp import ServerApp
        from traitlets.config import Config
    except ImportError:
        raise ValueError("jupyter needs Jupyter: pip install jupyterlab") from None
    token = guard.token or new_token()
    base = f"{scheduler.http.mounts.prefix}/jupyter"
    options = {"base_url": base, "allow_remote_access": True, "allow_root": True, "open_browser": False}
    jupyter = ServerApp.instance(config=Config({"ServerApp": options, "IdentityProvider": {"token": token}}))
    jupyter.initialize(argv=[], new_httpserver=False)
    scheduler.http.mounts.others[base] = jupyter.web_app
    if guard.token is None:
        logger.info("   Jupyter at: %25s", f"{base}?token={token}")
    else:
        logger.info("   Jupyter at: %25s, with the cluster's token", base)
