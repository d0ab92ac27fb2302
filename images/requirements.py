"""Print what an image installs besides daskfleet itself: the project's dependencies with the extras that are named.

The operator imports nothing of the runtime, so its image does with that extra alone.

Kept apart from the project's code so that a change to the code leaves the layer that holds the dependencies alone.
"""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path(__file__).with_name("pyproject.toml").read_text())["project"]
wanted = [] if sys.argv[1:] == ["operator"] else list(project["dependencies"])
for extra in sys.argv[1:]:
    wanted += project["optional-dependencies"][extra]
sys.stdout.write("\n".join(sorted(wanted)) + "\n")
