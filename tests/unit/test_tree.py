"""What the working tree must and must not contain."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def tracked() -> list[Path]:
    said = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in said.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_the_folders_do_not_shadow_the_standard_library() -> None:
    # An __init__.py in operator/ would make `import collections` fail for whoever starts Python in the root.
    script = "import collections, operator; operator.add"
    done = subprocess.run([sys.executable, "-S", "-c", script], cwd=ROOT, check=False)
    assert done.returncode == 0
    assert not (ROOT / "operator" / "__init__.py").exists()
    assert not (ROOT / "sdk" / "__init__.py").exists()


def test_nothing_built_is_tracked() -> None:
    built = {".pyc", ".so", ".o", ".whl", ".gz", ".tar", ".zip", ".egg", ".parquet"}
    for path in tracked():
        assert path.suffix not in built, path
        assert not {"__pycache__", "dist", "build", ".venv"} & set(path.relative_to(ROOT).parts), path
        assert path.stat().st_size < 300_000, path
        assert path.open("rb").read(4) != b"\x7fELF", path


def test_no_two_test_modules_have_one_name() -> None:
    # pytest imports them by their names alone.
    tests = [path.name for path in tracked() if path.name.startswith("test_") and path.suffix == ".py"]
    assert len(tests) == len(set(tests)), sorted({name for name in tests if tests.count(name) > 1})
