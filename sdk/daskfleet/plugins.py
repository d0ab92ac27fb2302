"""Plugins: code of the user's that runs in the scheduler, in every worker or beside it.

Subclass one of `SchedulerPlugin`, `WorkerPlugin` and `NannyPlugin`, override what is needed, and pass an instance to
`Client.register_plugin`. Workers that join later, and workers that start anew, get the plugins before their first task.
Methods may be coroutine functions; those of a scheduler plugin run on the scheduler's event loop, so they must not
block it.

``zipfile``, ``tempfile`` and ``shutil`` are imported where they are used, here and elsewhere: with what they bring
along they are a fifteenth of the time in which daskfleet is imported.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


class SchedulerPlugin:
    """Runs in the scheduler.

    Attributes
    ----------
    name
        By which it can be replaced and unregistered; by default the class's name.
    idempotent
        Registering it again under its name does nothing.
    """

    name: str | None = None
    idempotent: bool = False

    def start(self, scheduler: Any) -> Any:
        """It has been registered."""

    def before_close(self) -> Any:
        """The scheduler is about to close; everything still runs."""

    def close(self) -> Any:
        """The scheduler closes, or the plugin was unregistered."""

    def restart(self, scheduler: Any) -> Any:
        """A client has called `Client.restart`."""

    def add_worker(self, scheduler: Any, worker: str) -> Any:
        """A worker (its address) has joined."""

    def remove_worker(self, scheduler: Any, worker: str, *, stimulus_id: str, **kwargs: Any) -> Any:
        """A worker (its address) is gone."""

    def add_client(self, scheduler: Any, client: str) -> Any:
        """A client has connected."""

    def remove_client(self, scheduler: Any, client: str) -> Any:
        """A client is gone."""

    def update_graph(self, scheduler: Any, *, client: str, keys: Collection[Any], **kwargs: Any) -> Any:
        """A client has submitted tasks; large graphs come in several parts.

        Further keywords have distributed's names: `tasks`, the same keys in order, and `annotations`, `priority` and
        `stimulus_id`, which say nothing here.
        """

    def transition(self, key: Any, start: str, finish: str, *args: Any, stimulus_id: str, **kwargs: Any) -> Any:
        """A task goes from one state to another. This is called for each task, several times: keep it short, and do
        not change the scheduler's state."""

    def log_event(self, topic: str, msg: Any) -> Any:
        """Somebody has logged an event; of clients and workers, its pickle."""

    def valid_workers_downscaling(self, scheduler: Any, workers: list[Any]) -> list[Any]:
        """Those of `workers` that may be closed when the cluster shrinks."""
        return workers


class WorkerPlugin:
    """Runs in every worker. `name` and `idempotent` are those of `SchedulerPlugin`."""

    name: str | None = None
    idempotent: bool = False

    def setup(self, worker: Any) -> Any:
        """The worker is there; it waits for this before its first task."""

    def teardown(self, worker: Any) -> Any:
        """The worker closes, or the plugin was unregistered or replaced."""

    def transition(self, key: Any, start: str, finish: str, **kwargs: Any) -> Any:
        """A task goes from one state to another."""


class NannyPlugin:
    """Runs beside every worker, in the process that watches over it.

    Attributes
    ----------
    restart
        Start the worker anew once the plugin is set up.
    name, idempotent
        As `SchedulerPlugin` has them.
    """

    name: str | None = None
    idempotent: bool = False
    restart: bool = False

    def setup(self, nanny: Any) -> Any:
        """The nanny is there."""

    def teardown(self, nanny: Any) -> Any:
        """The plugin was unregistered or replaced, or the nanny closes."""


def plugin_name(plugin: Any) -> str:
    """The name under which a plugin is registered unless another is given."""
    return str(getattr(plugin, "name", None) or type(plugin).__name__)


def kind_of(plugin: Any) -> str:
    """Where a plugin belongs: ``scheduler``, ``worker`` or ``nanny``.

    Raises
    ------
    TypeError
        It is none, or a class where an instance is needed.
    """
    for kind, base in (("scheduler", SchedulerPlugin), ("worker", WorkerPlugin), ("nanny", NannyPlugin)):
        if isinstance(plugin, base):
            return kind
    if isinstance(plugin, type):
        raise TypeError(f"register_plugin needs an instance: {plugin.__name__}()")
    raise TypeError(f"{plugin!r} is no plugin: subclass SchedulerPlugin, WorkerPlugin or NannyPlugin")


async def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a plugin's method, which may be a coroutine function."""
    import inspect

    value = function(*args, **kwargs)
    return await value if inspect.isawaitable(value) else value


# Built in -----------------------------------------------------------------------------------------------------------


class Environ(NannyPlugin):
    """Sets environment variables of the workers, which start anew to have them from the beginning.

    Parameters
    ----------
    environ
        Values by name; those that are None are unset.
    """

    restart = True

    def __init__(self, environ: dict[str, Any] | None = None) -> None:
        self.environ = {name: None if value is None else str(value) for name, value in (environ or {}).items()}

    def setup(self, nanny: Any) -> None:
        nanny.env.update(self.environ)


class UploadFile(WorkerPlugin):
    """Gives every worker a file: a module, which can be imported then, an archive of modules, or data.

    Parameters
    ----------
    filepath
        The file, here.
    load
        Import a ``.py`` file there, again if it has been imported already.
    """

    def __init__(self, filepath: str | os.PathLike[str], load: bool = True) -> None:
        path = Path(filepath)
        self.filename, self.load, self.data = path.name, load, path.read_bytes()
        self.name = f"upload-file-{path.name}"

    def setup(self, worker: Any) -> None:
        target = Path(worker.local_directory, self.filename)
        target.write_bytes(self.data)
        if self.filename.endswith((".zip", ".egg", ".pyz")):
            _put_on_path(target)
            importlib.invalidate_caches()
        elif self.filename.endswith(".py"):
            _put_on_path(target.parent)
            if self.load:
                load_module(target.stem)


class UploadDirectory(WorkerPlugin):
    """Gives every worker a copy of a directory.

    Parameters
    ----------
    path
        The directory, here.
    update_path
        Make what is in it importable.
    skip_words
        Directories and files of these names are left out.
    skip
        Functions of a path that say whether to leave it out.

    Notes
    -----
    In distributed this is a nanny's plugin, with `restart` to have it take effect. Here it needs no restart.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        update_path: bool = False,
        skip_words: Iterable[str] = (".git", ".github", ".pytest_cache", "tests", "docs"),
        skip: Iterable[Callable[[str], bool]] = (lambda path: path.endswith(".pyc"),),
    ) -> None:
        import zipfile

        root = Path(path).expanduser().resolve(strict=True)
        self.path, self.update_path, self.name = root.name, update_path, f"upload-directory-{root.name}"
        words, skips = set(skip_words), list(skip)
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(root.rglob("*")):
                relative = file.relative_to(root)
                if file.is_file() and not words.intersection(relative.parts) and not any(f(str(file)) for f in skips):
                    archive.write(file, Path(root.name, relative))
        self.data = stream.getvalue()

    def setup(self, worker: Any) -> None:
        import zipfile

        with zipfile.ZipFile(io.BytesIO(self.data)) as archive:
            archive.extractall(worker.local_directory)
        if self.update_path:
            _put_on_path(Path(worker.local_directory, self.path))
            importlib.invalidate_caches()


class InstallPlugin(WorkerPlugin):
    """Calls a function on every worker that installs something; one worker of a machine at a time.

    Parameters
    ----------
    install_fn
        What to call, without arguments. It should be quick when everything is installed already.
    restart_workers
        Start the workers that are there anew afterwards, for packages they may have imported before.
    """

    def __init__(self, install_fn: Callable[[], Any], restart_workers: bool = False) -> None:
        self.install, self.restart_workers = install_fn, restart_workers

    def setup(self, worker: Any) -> Any:
        import asyncio

        return asyncio.to_thread(self._install)

    def _install(self) -> None:
        with _machine_lock("install"):
            self.install()
        importlib.invalidate_caches()


class PipInstall(InstallPlugin):
    """Installs packages by pip on every worker.

    Parameters
    ----------
    packages
        Requirements, such as ``"scikit-learn>=1.4"``.
    pip_options
        Further options, such as ``["--upgrade"]``.
    restart_workers
        As `InstallPlugin` has it.
    """

    def __init__(self, packages: Iterable[str], pip_options: Iterable[str] = (), restart_workers: bool = False) -> None:
        self.packages, self.pip_options = list(packages), list(pip_options)
        self.name = f"pip-install-{'-'.join(self.packages)}"
        super().__init__(self._pip, restart_workers)

    def _pip(self) -> None:
        _install([sys.executable, "-m", "pip", "install", *self.pip_options, *self.packages])


class CondaInstall(InstallPlugin):
    """Installs packages by conda on every worker, into the environment that the worker runs in.

    Parameters
    ----------
    packages
        Specifications, such as ``"numpy>=2"``.
    conda_options
        Further options, such as ``["--channel", "conda-forge"]``.
    restart_workers
        As `InstallPlugin` has it.
    """

    def __init__(
        self, packages: Iterable[str], conda_options: Iterable[str] = (), restart_workers: bool = False
    ) -> None:
        self.packages, self.conda_options = list(packages), list(conda_options)
        self.name = f"conda-install-{'-'.join(self.packages)}"
        super().__init__(self._conda, restart_workers)

    def _conda(self) -> None:
        import shutil

        conda = os.environ.get("CONDA_EXE") or shutil.which("conda") or shutil.which("mamba")
        if conda is None:
            raise RuntimeError("CondaInstall: this worker has no conda; use an image with conda, or PipInstall")
        _install([conda, "install", "--yes", "--prefix", sys.prefix, *self.conda_options, *self.packages])


def _install(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with status {done.returncode}:\n{done.stderr.strip()}")


def load_module(name: str) -> Any:
    """Import a module, afresh if it has been imported before."""
    importlib.invalidate_caches()
    module = sys.modules.get(name)
    return importlib.import_module(name) if module is None else importlib.reload(module)


def _put_on_path(path: Path) -> None:
    if str(path) not in sys.path:
        sys.path.insert(0, str(path))


@contextlib.contextmanager
def _machine_lock(name: str) -> Iterator[None]:
    """Held by one process of this user and machine at a time."""
    import fcntl
    import tempfile

    with open(Path(tempfile.gettempdir(), f"daskfleet-{os.getuid()}-{name}.lock"), "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
