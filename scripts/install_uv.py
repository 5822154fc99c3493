"""Install uv into the folder given as the argument.

Needs Python 3.9 or newer. Where it has no pip (Debian and Ubuntu split it off), a virtual environment that is thrown
away lends its own; where there is no venv either, apt-get installs python3-pip if that needs no password. Because of
`pip --target` an "externally managed" Python is no obstacle (PEP 668).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

UV = "uv>=0.9,<1"
SETTINGS = {"PIP_REQUIRE_VIRTUALENV": "0", "PIP_ROOT_USER_ACTION": "ignore", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def main(target: Path) -> None:
    print(f"uv is missing: installing it into {target}", flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the last step is one rename: an interrupted installation leaves nothing half done.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".tools-") as folder:
        pip = next((pip for pip in pips(Path(folder, "venv")) if succeeds([*pip, "--version"])), None)
        if pip is None:
            sys.exit(
                f"scripts/install_uv.py: {sys.executable} has neither pip nor a working venv; run `sudo apt-get "
                "install -y python3-pip` (or what your system has instead), or put uv on PATH, and try again."
            )
        new = Path(folder, "tools")
        command = [*pip, "install", "--quiet", "--no-user", "--target", str(new), UV]
        if subprocess.run(command, check=False, env={**os.environ, **SETTINGS}).returncode:
            sys.exit(
                "scripts/install_uv.py: pip could not install uv, see above; either let pip reach a package index "
                "(PIP_INDEX_URL names a mirror), or put uv on PATH, and try again."
            )
        try:
            new.rename(target)
        except OSError:
            if not (target / "bin" / "uv").exists():  # else another process was faster
                raise


def pips(venv: Path) -> Iterator[list[str]]:
    """Commands that may run a pip, the least intrusive first; each is prepared when it is asked for."""
    yield [sys.executable, "-m", "pip"]
    # Not `-m ensurepip`: venv runs just that, but leaves this Python as it is.
    if succeeds([sys.executable, "-m", "venv", str(venv)]):
        yield [str(venv / "bin" / "python"), "-m", "pip"]
    if apt_get_installs_pip():
        yield ["/usr/bin/python3", "-m", "pip"]  # the Python that Debian's packages belong to


def apt_get_installs_pip() -> bool:
    as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if not shutil.which("apt-get") or not succeeds([*as_root, "true"]):
        return False
    print("this Python has neither pip nor venv: apt-get installs python3-pip", flush=True)
    apt_get = [*as_root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"]
    install = [*apt_get, "install", "--yes", "--no-install-recommends", "python3-pip"]
    # A machine that is new has no list of packages yet, and an old list names files that are gone.
    return succeeds(install) or (succeeds([*apt_get, "update"], show=True) and succeeds(install, show=True))


def succeeds(command: list[str], *, show: bool = False) -> bool:
    output = None if show else subprocess.DEVNULL
    try:
        return subprocess.run(command, check=False, stdout=output, stderr=output).returncode == 0
    except OSError:  # there is no such command
        return False


if __name__ == "__main__":
    main(Path(sys.argv[1]))
