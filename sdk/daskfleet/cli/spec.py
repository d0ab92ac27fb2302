"""``dask spec``: servers of any class from a specification in JSON, until they end or a signal ends them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import click

from daskfleet.cli.common import fail, first, run, set_up_logging, version_option
from daskfleet.exceptions import DaskfleetError


@click.command(name="spec")
@click.argument("args", nargs=-1)
@click.option("--spec", default="", help='Such as {"cls": "daskfleet.Worker", "opts": {"nthreads": 2}}.')
@click.option("--spec-file", type=click.Path(exists=True, dir_okay=False), default=None, help="File that holds it.")
@version_option
def main(args: tuple[str, ...], spec: str, spec_file: str | None) -> None:
    """Start the class that a specification names, with ARGS (a scheduler's address, say) and its "opts".

    Several at once are {"name": {"cls": …, "opts": {…}}, …}.
    """
    from daskfleet.deploy.process import load_class

    set_up_logging()
    if bool(spec) == bool(spec_file):
        raise click.UsageError("give either --spec or --spec-file")
    try:
        content = json.loads(spec or Path(str(spec_file)).read_text())
        parts = {None: content} if isinstance(content, dict) and "cls" in content else dict(content)
        classes = {name: load_class(part["cls"]) for name, part in parts.items()}
    except (ValueError, TypeError, KeyError, OSError) as error:
        fail(f'the specification cannot be used: {error}; expected {{"cls": "module.Class", "opts": {{…}}}}')

    async def serve(stop: asyncio.Event) -> int:
        servers: list[Any] = []
        try:
            for name, cls in classes.items():
                options = {**({"name": name} if name is not None else {}), **parts[name].get("opts", {})}
                servers.append(cls(*args, **options))
            await asyncio.gather(*servers)
        except (OSError, ValueError, TypeError, TimeoutError, DaskfleetError) as error:
            fail(error)
        await first(stop.wait(), asyncio.gather(*(server.finished() for server in servers)))
        await asyncio.gather(*(server.close() for server in servers))
        return 0

    run(serve)


if __name__ == "__main__":
    main()
