"""Install uv into the folder given as the argument, touching nothing else on the machine.

Needs Python 3.9 or newer, and neither venv nor pip (Debian splits both off): where there is no pip, one is fetched
from PyPI, checked against its hash and run as it is. `pip --target` also leaves "externally managed" Pythons alone
(PEP 668).
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

UV = "uv>=0.9,<1"
PIP = (
    "https://files.pythonhosted.org/packages/44/3c/d717024885424591d5376220b5e836c2d5293ce2011523c9de23ff7bf068/"
    "pip-25.3-py3-none-any.whl"
)
PIP_SHA256 = "9655943313a94722b7774661c21049070f6bbb0a1516bf02f7c8d5d9201514cd"
SETTINGS = {"PIP_REQUIRE_VIRTUALENV": "0", "PIP_ROOT_USER_ACTION": "ignore", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def main(target: Path) -> None:
    print(f"uv is missing: installing it into {target}", flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the last step is one rename: an interrupted installation leaves nothing half done.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".tools-") as folder:
        new = Path(folder, "tools")
        command = [*pip(Path(folder)), "install", "--quiet", "--no-user", "--target", str(new), UV]
        subprocess.run(command, check=True, env={**os.environ, **SETTINGS})
        try:
            new.rename(target)
        except OSError:
            if not (target / "bin" / "uv").exists():  # else another process was faster
                raise


def pip(folder: Path) -> list[str]:
    """The command that runs pip: this Python's own, or that of a wheel fetched into `folder`."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    wheel = folder / PIP.rpartition("/")[2]
    with urllib.request.urlopen(PIP, timeout=60) as answer:
        content = answer.read()
    seen = hashlib.sha256(content).hexdigest()
    if seen != PIP_SHA256:
        raise ValueError(f"{PIP} has the SHA-256 {seen}; expected {PIP_SHA256}")
    wheel.write_bytes(content)
    return [sys.executable, f"{wheel}/pip"]


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        sys.exit(
            f"scripts/install_uv.py: {error}\n"
            "Could not install uv by itself. Either make https://pypi.org reachable (PIP_INDEX_URL names a mirror), or "
            "install uv yourself (https://docs.astral.sh/uv/) and put it on PATH."
        )
