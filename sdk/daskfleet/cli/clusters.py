"""``daskfleet``: list, scale, adapt, look into, end and create clusters, whatever made them.

Each command imports what it needs, so that ``--help`` and mistakes are told in a tenth of a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncGenerator, Callable, Coroutine
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click
from click.shell_completion import CompletionItem, get_completion_class

from daskfleet.cli.common import fail, version_option

if TYPE_CHECKING:
    from daskfleet.deploy.discovery import Findings, FoundCluster

F = TypeVar("F", bound=Callable[..., Any])

#: Seconds that completing a name may take.
COMPLETION = 3.0
COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "red")


def where_options(function: F) -> F:
    """``--namespace`` of clusters that there are, and ``--context``."""
    return namespace_option("all that you may see")(context_option(function))


def namespace_option(default: str) -> Callable[[F], F]:
    text = f"Kubernetes namespace; by default {default}."
    return click.option("-n", "--namespace", default=None, help=text, shell_complete=complete_namespace)


def context_option(function: F) -> F:
    text = "Context of the kubeconfig; by default the current one."
    option = click.option("--context", default=None, help=text, callback=use_context, expose_value=False, is_eager=True)
    return option(function)


def use_context(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    """Let everything in this process use this context of the kubeconfig."""
    if value is not None:
        import dask

        dask.config.set({"kubernetes.context": value})


def complete_name(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The names of clusters that begin so."""
    return [
        CompletionItem(name, help=f"{found.made_by} {found.status}")
        for found in _findings_for_completion(context.params.get("namespace"))
        for name in {found.name, found.name.rpartition("/")[2]}
        if name.startswith(incomplete)
    ]


def complete_namespace(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The namespaces that have clusters."""
    names = {found.name.rpartition("/")[0] for found in _findings_for_completion(None)} - {""}
    return [CompletionItem(name) for name in sorted(names) if name.startswith(incomplete)]


def _findings_for_completion(namespace: str | None) -> list[FoundCluster]:
    from daskfleet.deploy.discovery import discover

    async def ask() -> Findings:
        async with asyncio.timeout(COMPLETION):
            return await discover(namespace=namespace)

    try:
        return asyncio.run(ask()).clusters
    except Exception:  # a shell is waiting: better no names than a traceback
        return []


def name_argument(function: F) -> F:
    return click.argument("name", shell_complete=complete_name)(function)


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run to the end; errors that are meant for people end the command with one line."""
    from daskfleet.exceptions import DaskfleetError

    try:
        asyncio.run(body())
    except BrokenPipeError:
        raise  # `| head` has enough
    except (DaskfleetError, ImportError, OSError, ValueError) as error:
        fail(str(error) or type(error).__name__)


async def find(name: str, namespace: str | None) -> FoundCluster:
    from daskfleet.deploy.discovery import _find

    return await _find(name, namespace)


async def until_interrupted(text: str) -> None:
    """Say so, and wait for Ctrl-C or SIGTERM."""
    click.echo(text, err=True)
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()


@click.group(name="daskfleet", context_settings={"help_option_names": ["-h", "--help"]})
@version_option
def main() -> None:
    """List, scale and end Dask clusters, whatever made them: KubeCluster, Helm, LocalCluster, SSH, batch queues.

    A NAME is as `daskfleet list` shows it; of namespace/name the second part is enough where it is the only one.
    For names on the Tab key: eval "$(daskfleet completion bash)".
    """


@main.command(name="list")
@click.option(
    "-o", "--output", type=click.Choice(["table", "json", "name"]), default="table", show_default=True, help="As what."
)
@where_options
def list_command(namespace: str | None, output: str) -> None:
    """List the clusters that there are."""
    from daskfleet.deploy.discovery import discover

    async def body() -> None:
        findings = await discover(namespace=namespace)
        for method, problem in findings.problems.items():
            click.echo(f"Warning: {method}: {problem}", err=True)
        if output == "json":
            click.echo(json.dumps([as_json(found) for found in findings.clusters], indent=2))
        elif output == "name":
            click.echo("".join(f"{found.name}\n" for found in findings.clusters), nl=False)
        elif findings.clusters:
            show_table(findings.clusters)
        elif not findings.problems:
            click.echo("There are no clusters" + (f" in namespace {namespace}." if namespace else "."), err=True)
        if findings.problems and not findings.clusters:
            raise SystemExit(1)

    run(body)


def as_json(found: FoundCluster) -> dict[str, Any]:
    """What `list` says of a cluster."""
    namespace, _, name = found.name.rpartition("/")
    return {
        "name": name,
        "namespace": namespace or None,
        "type": found.made_by or found.manager.__name__,
        "status": found.status or None,
        "workers": found.workers,
        "ready": found.ready,
        "address": found.address or None,
        "created": found.created.isoformat() if found.created else None,
    }


def show_table(clusters: list[FoundCluster]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("NAME", "TYPE", "STATUS", "WORKERS", "AGE", "ADDRESS", box=None, header_style="", pad_edge=False)
    for found in clusters:
        workers = "" if found.workers is None else f"{found.ready}/{found.workers}"
        kind = found.made_by or found.manager.__name__
        table.add_row(found.name, kind, found.status, workers, age(found.created), found.address)
    console = Console(soft_wrap=True, highlight=False)
    if not console.is_terminal:
        console = Console(soft_wrap=True, highlight=False, width=400)  # a pipe has no width to fit into
    console.print(table)


def age(since: datetime | None) -> str:
    """How long ago, in its greatest unit."""
    if since is None:
        return ""
    seconds = max(0, int((datetime.now(UTC) - since).total_seconds()))
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


@main.command()
@name_argument
@click.argument("n", type=click.IntRange(min=0))
@click.option("-g", "--worker-group", default="default", show_default=True, help="Worker group to scale.")
@where_options
def scale(name: str, n: int, worker_group: str, namespace: str | None) -> None:
    """Ask for N workers.

    Returns without waiting for them. Workers that go hand their data over first. Adaptive scaling ends.
    """

    async def body() -> None:
        found = await find(name, namespace)
        await found._scale(n, worker_group)
        click.echo(f"{found.name} scaled to {n}")

    run(body)


@main.command()
@name_argument
@click.option("--minimum", type=click.IntRange(min=0), default=0, show_default=True, help="Least number of workers.")
@click.option("--maximum", type=click.IntRange(min=0), default=10, show_default=True, help="Greatest number.")
@click.option("--off", is_flag=True, help="End adaptive scaling; the workers stay as they are.")
@where_options
def adapt(name: str, minimum: int, maximum: int, off: bool, namespace: str | None) -> None:
    """Let the load decide the number of workers. In Kubernetes the operator does that from then on."""

    async def body() -> None:
        found = await find(name, namespace)
        kept = await found._adapt(minimum, maximum, not off)
        said = "is adapted no more" if off else f"adapts: {minimum} to {maximum} workers"
        click.echo(f"{found.name} {said}")
        if kept is not None:
            try:
                await until_interrupted("No operator does it here: it ends with this command, by Ctrl-C.")
            finally:
                await kept.close()

    run(body)


@main.command()
@name_argument
@click.option("--scheduler/--no-scheduler", default=True, help="With the scheduler's.")
@click.option("--workers/--no-workers", default=True, help="With the workers'.")
@click.option("--tail", type=click.IntRange(min=1), default=None, help="Only so many last lines of each.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what is logged from now on, also by workers to come.")
@where_options
def logs(name: str, scheduler: bool, workers: bool, tail: int | None, follow: bool, namespace: str | None) -> None:
    """Print what scheduler and workers have logged.

    With --follow each line has the process's name before it, and it ends by Ctrl-C or with the cluster.
    """

    async def body() -> None:
        found = await find(name, namespace)
        if not follow:
            return click.echo(repr(await found._logs(scheduler, workers, tail)))
        printing = asyncio.ensure_future(print_lines(found._follow(scheduler, workers, tail)))
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, printing.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await printing

    run(body)


async def print_lines(said: AsyncGenerator[tuple[str, str]]) -> None:
    """Lines as they come, with the names of who said them in colours that tell them apart on a terminal."""
    colours: dict[str, str] = {}
    async with contextlib.aclosing(said):
        async for name, line in said:
            colour = colours.setdefault(name, COLOURS[len(colours) % len(COLOURS)])
            click.echo(f"{click.style(name, fg=colour)} | {line}")


@main.command()
@name_argument
@click.option("--open", "browse", is_flag=True, help="Open it in a browser.")
@where_options
def dashboard(name: str, browse: bool, namespace: str | None) -> None:
    """Print the URL of the dashboard.

    Where it can be reached only through the Kubernetes API server, this forwards it until Ctrl-C.
    """

    async def body() -> None:
        found = await find(name, namespace)
        async with found._dashboard() as (link, lasting):
            if not link:
                fail(f"{found.name} has no dashboard")
            click.echo(link)
            if browse:
                click.launch(link)
            if not lasting:
                await until_interrupted("Forwarding until Ctrl-C.")

    run(body)


@main.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_name)
@where_options
def delete(names: tuple[str, ...], namespace: str | None) -> None:
    """End clusters and all that belongs to them."""

    async def body() -> None:
        found = [await find(name, namespace) for name in names]  # all of them, before any is touched
        for one in found:
            await one._delete()
            click.echo(f"{one.name} deleted")

    run(body)


@main.command()
@click.option("-f", "--filename", required=True, type=click.Path(exists=True, dir_okay=False), help="YAML file.")
@namespace_option("the file's, or that of the kubeconfig's context")
@context_option
def create(filename: str, namespace: str | None) -> None:
    """Create the cluster that a file describes.

    It is ready for clients when this ends; its workers start meanwhile. The file holds a DaskCluster manifest (with its
    worker groups and autoscaler, if there are any), or dask-ctl's version: 1, module, class, args, kwargs.
    """
    from daskfleet.deploy.discovery import create_cluster
    from daskfleet.exceptions import DaskfleetError

    try:
        cluster = create_cluster(filename, namespace)
    except (DaskfleetError, ImportError, OSError, ValueError, TypeError) as error:
        fail(str(error) or type(error).__name__)
    full_name = "/".join(part for part in (getattr(cluster, "namespace", None), cluster.name) if part)
    click.echo(f"{full_name} created")
    if getattr(cluster, "shutdown_on_close", True):
        asyncio.run(until_interrupted("It lives in this command: Ctrl-C ends it."))
    cluster.close()


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> NoReturn:
    """Print what makes SHELL complete names.

    As in: eval "$(daskfleet completion bash)".
    """
    completer = get_completion_class(shell)
    assert completer is not None
    click.echo(completer(main, {}, "daskfleet", "_DASKFLEET_COMPLETE").source())
    raise SystemExit(0)


if __name__ == "__main__":
    main(prog_name="daskfleet")
