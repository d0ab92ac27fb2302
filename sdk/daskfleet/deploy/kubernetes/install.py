"""The program of the init container that installs an environment; see `daskfleet.deploy.kubernetes.environment`.

It runs by ``python3 -c`` in whatever image the workers have, so it knows the standard library alone. The environment is
a virtual one that sees the image's packages behind its own: what the image has in the right version is not installed
again. Several pods may share the folder: one installs, under a lock, the others wait for it. What was left half done is
done anew.
"""

import base64
import fcntl
import os
import shutil
import site
import subprocess
import sys
import venv
import zlib
from pathlib import Path
from typing import NoReturn


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
    """A conda environment at `target`, by whichever of its programs the image has."""
    program = next(filter(None, map(shutil.which, ("micromamba", "mamba", "conda"))), None)
    if program is None:
        fail("the image has none of micromamba, mamba and conda, which a conda environment needs")
    described = target.with_suffix(".yml")
    described.write_text(content)
    if subprocess.run(
        [str(program), "env", "create", "--yes", "--prefix", str(target), "--file", str(described)]
    ).returncode:
        fail(f"{program} says why above")
    packages = next((target / "lib").glob("python*/site-packages"), None)
    own = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if packages is None or packages.parent.name != own:
        fail(f"it has {packages.parent.name if packages else 'no Python'}, and the image's workers run {own}")
    (target / "site").symlink_to(packages.relative_to(target))


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
