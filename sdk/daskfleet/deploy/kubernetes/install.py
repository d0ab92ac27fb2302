"""The program of the init container that installs an environment; see `daskfleet.deploy.kubernetes.environment`.

It runs by ``python3 -c`` in whatever image the workers have, so it knows the standard library alone. The environment is
a virtual one that sees the image's packages behind its own: what the image has in the right version is not installed
again. Several pods may share the folder: one installs, under a lock, the others wait for it. What was left half done is
done anew.
"""

import base64
import fcntl
import json
import os
import shutil
import site
import subprocess
import sys
import venv
import zlib
from pathlib import Path
from typing import Any, NoReturn

RATTLER = "py-rattler>=0.28,<0.29"
#: What runs where it is installed. Its threads outlive the interpreter's, which ends by a crash then: so by `os._exit`.
SOLVE = """
import asyncio, json, os, sys
import rattler

async def main(channels, specs, python, cache, target):
    found = await rattler.solve(
        channels,
        specs,
        gateway=rattler.Gateway(cache_dir=cache + "/repodata"),
        virtual_packages=rattler.VirtualPackage.detect(),
        constraints=[python],
    )
    await rattler.install(found, target_prefix=target, cache_dir=cache + "/packages", show_progress=False)
    for record in found:
        print(record.url, flush=True)

try:
    asyncio.run(main(**json.loads(sys.argv[1])))
except Exception as error:
    print(error, file=sys.stderr, flush=True)
    os._exit(1)
os._exit(0)
"""


def fail(reason: str) -> NoReturn:
    """End with a sentence for whoever reads the log."""
    sys.exit(f"the environment cannot be installed: {reason}")


def install_by_pip(target: Path, requirements: str) -> None:
    """A virtual environment at `target` with these requirements."""
    venv.create(target, symlinks=True)
    packages = next((target / "lib").glob("python*/site-packages"))
    (packages / "image.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    listed = target / "requirements.txt"
    listed.write_text(requirements)
    command = [str(target / "bin" / "python"), "-m", "pip", "install", "--no-input", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--root-user-action=ignore"]
    command += ["--no-deps"] if os.environ["ENVIRONMENT_COMPLETE"] else []
    if subprocess.run([*command, "--requirement", str(listed)]).returncode:
        fail("pip says why above")
    (target / "site").symlink_to(packages.relative_to(target))


def install_by_conda(target: Path, content: str) -> None:
    """A conda environment at `target`, by whichever of its programs the image has, else by rattler."""
    program = next(filter(None, map(shutil.which, ("micromamba", "mamba", "conda"))), None)
    if program is None:
        install_by_rattler(target, json.loads(content))
    else:
        described = target.with_suffix(".yml")
        described.write_text(content)
        command = [program, "env", "create", "--yes", "--prefix", str(target), "--file", str(described)]
        if subprocess.run(command).returncode:
            fail(f"{program} says why above")
    packages = next((target / "lib").glob("python*/site-packages"), None)
    own = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if packages is None or packages.parent.name != own:
        fail(f"it has {packages.parent.name if packages else 'no Python'}, and the image's workers run {own}")
    (target / "site").symlink_to(packages.relative_to(target))


def install_by_rattler(target: Path, described: dict[str, Any]) -> None:
    """The same by the engine of pixi, which pip can install, into a folder that is removed again."""
    dependencies = described["dependencies"]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    options = ["install", "--no-cache-dir", "--root-user-action=ignore"]
    tools = target.with_suffix(".tools")
    try:
        if subprocess.run([*pip, *options, "--quiet", "--no-compile", "--target", str(tools), RATTLER]).returncode:
            fail(f"the image has none of micromamba, mamba and conda, and pip cannot install {RATTLER}: see above")
        told = {
            "channels": [url for name in described.get("channels") or ["conda-forge"] for url in channel(name)],
            "specs": [entry for entry in dependencies if isinstance(entry, str)],
            "python": f"python {sys.version_info.major}.{sys.version_info.minor}.*",
            "cache": str(tools / "cache"),
            "target": str(target),
        }
        solve = [sys.executable, "-c", SOLVE, json.dumps(told)]
        if subprocess.run(solve, env=os.environ | {"PYTHONPATH": str(tools)}).returncode:
            fail("rattler says why above")
    finally:
        shutil.rmtree(tools, ignore_errors=True)
    more = [line for entry in dependencies if isinstance(entry, dict) for line in entry["pip"]]
    own = ["--python", str(target / "bin" / "python")]
    if more and subprocess.run([*pip, *own, *options, *more]).returncode:
        fail("pip says why above")


def channel(name: str) -> list[str]:
    """Where a channel is: ``defaults`` is conda's name for several."""
    return [f"https://repo.anaconda.com/pkgs/{part}" for part in ("main", "r")] if name == "defaults" else [name]


def main() -> None:
    """Install it, or find it installed."""
    os.umask(0o022)
    folder, key = Path(os.environ["ENVIRONMENT_FOLDER"]), os.environ["ENVIRONMENT_KEY"]
    wanted, own = os.environ["ENVIRONMENT_PYTHON"], f"{sys.version_info.major}.{sys.version_info.minor}"
    if wanted != own:
        print(f"the client runs Python {wanted}, the image has {own}", flush=True)  # noqa: T201
    content = zlib.decompress(base64.b64decode(os.environ["ENVIRONMENT"])).decode()
    target, done = folder / key, folder / key / "complete"
    with (folder / f"{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if done.exists():
            print(f"environment {key} is installed already", flush=True)  # noqa: T201
            return
        shutil.rmtree(target, ignore_errors=True)
        install = {"pip": install_by_pip, "conda": install_by_conda}[os.environ["ENVIRONMENT_KIND"]]
        install(target, content)
        done.touch()
    print(f"environment {key} is installed", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
