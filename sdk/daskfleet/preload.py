"""Code of the user's that runs inside a scheduler, worker or nanny as it starts: `Preloads`.

A preload is a module's name, a ``.py`` file or a URL. It may define ``dask_setup(server)`` and
``dask_teardown(server)``, each plain or a coroutine; and ``dask_setup`` may be a click command, which then gets the
command line's own extra arguments. The behaviour is that of distributed's ``--preload``.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from daskfleet import config
from daskfleet.exceptions import DaskfleetError
from daskfleet.importing import Lazy

if TYPE_CHECKING:
    import click
else:
    click = Lazy("click")

logger = logging.getLogger(__name__)

#: Seconds for a preload that is fetched from a URL.
TIMEOUT = 30.0


class Preloads:
    """The preloads of one server.

    Parameters
    ----------
    server
        What ``dask_setup`` is called with.
    names
        One or several; None for those of dask's configuration, ``distributed.<role>.preload``.
    argv
        Arguments for those that are click commands.
    role
        ``scheduler``, ``worker`` or ``nanny``.
    """

    def __init__(self, server: Any, names: str | Sequence[str] | None, argv: Sequence[str] | None, role: str) -> None:
        if names is None:
            names = config.get(f"distributed.{role}.preload") or []
            argv = argv or config.get(f"distributed.{role}.preload-argv")
        self._server = server
        self._names = [names] if isinstance(names, str) else list(names)
        self._argv = list(argv or ())
        self._modules: list[tuple[str, ModuleType]] = []

    async def start(self) -> None:
        """Load them, and run what they define.

        Raises
        ------
        DaskfleetError
            One cannot be loaded, or fails; the message says which, and why.
        """
        for name in self._names:
            try:
                module = load(name)
                self._modules.append((name, module))
                setup = getattr(module, "dask_setup", None)
                if isinstance(setup, click.Command):
                    context = setup.make_context(name, list(self._argv))
                    assert setup.callback is not None
                    result = setup.callback(self._server, *context.args, **context.params)
                else:
                    result = setup(self._server) if setup is not None else None
                if inspect.isawaitable(result):
                    await result
            except click.ClickException as error:
                raise DaskfleetError(f"preload {name}: {error.format_message()}") from None
            except Exception as error:
                logger.debug("preload %s", name, exc_info=True)
                raise DaskfleetError(f"preload {name}: {type(error).__name__}: {error}") from error
            logger.info("preloaded %s", name)

    async def teardown(self) -> None:
        """Run their ``dask_teardown``; a failure is logged only, as the server ends anyway."""
        modules, self._modules = self._modules, []
        for name, module in reversed(modules):
            try:
                result = module.dask_teardown(self._server) if hasattr(module, "dask_teardown") else None
                if inspect.isawaitable(result):
                    await result
            except Exception:
                logger.exception("dask_teardown of preload %s failed", name)


def load(name: str) -> ModuleType:
    """The module that a name, file or URL stands for."""
    if name.startswith(("http://", "https://")):
        from urllib.request import urlopen

        with urlopen(name, timeout=TIMEOUT) as answer:
            source = answer.read().decode()
        return _from_source(Path(name).stem, source, name)
    if name.endswith(".py"):
        return _from_source(Path(name).stem, Path(name).read_text(), str(Path(name).absolute()))
    return importlib.import_module(name)


def _from_source(name: str, source: str, origin: str) -> ModuleType:
    spec = importlib.util.spec_from_loader(name, loader=None, origin=origin)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = origin
    sys.modules[name] = module  # tasks that it defines unpickle by its name
    exec(compile(source, origin, "exec"), module.__dict__)
    return module
