"""Wheels to install in tests, without an index."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path


def build(folder: Path, name: str, version: str, source: str) -> Path:
    """Write the wheel of a package of one module into `folder`."""
    about = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": source,
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = f"{about}/RECORD"
    files[record] = "".join(f"{file},,\n" for file in (*files, record))
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, content in files.items():
            wheel.writestr(file, content)
    return path


def download(folder: Path, requirement: str) -> None:
    """Get the wheel of a package, as pip is configured here, into `folder`."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--only-binary=:all:", "--dest", folder, requirement], check=True, timeout=120)
