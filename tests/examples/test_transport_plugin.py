"""The example of a third party's transport: it is installed as any package is, and the suite certifies it."""

from __future__ import annotations

import ast
import asyncio
import io
import json
import os
import secrets
import shutil
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from missing import missing

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/transport-plugin"
DATABASE = os.environ.get("POSTGRES_URL", "postgresql://postgres@127.0.0.1:5432/postgres")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the package and nothing else. What it depends on is in this environment."""
    target, source = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("source") / "transport-plugin"
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    install = [ROOT / "scripts/uv", "pip", "install", "--no-deps", "--no-build-isolation", "--python", sys.executable]
    subprocess.run([*install, "--target", target, source], check=True, capture_output=True)
    return target


@pytest.fixture
def url() -> Iterator[str]:
    """A schema of the test's own on the server of POSTGRES_URL."""
    schema = f"test_{secrets.token_hex(6)}"

    async def run(statement: str) -> None:
        connection = await asyncpg.connect(DATABASE, timeout=10)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    try:
        asyncio.run(run("SELECT 1"))
    except (OSError, asyncpg.PostgresError) as error:
        missing("postgres", str(error))
    yield f"pgqueue{DATABASE.removeprefix('postgresql')}?schema={schema}&message_bytes=100000&lease=0.5"
    asyncio.run(run(f"DROP SCHEMA IF EXISTS {schema} CASCADE"))


def run(installed: Path, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """In a process that finds the package as an installed one."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("THALWEG_", "PYTEST_"))}
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**clean, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_suite_certifies_it(installed: Path, url: str, tmp_path: Path) -> None:
    suite = (
        "-m",
        "pytest",
        f"--thalweg-transport={url}",
        "--thalweg-certificate=certificate.json",
        "-p",
        "no:cacheprovider",
    )
    result = run(installed, tmp_path, *suite)
    assert result.returncode == 0, result.stdout
    (certificate,) = json.loads((tmp_path / "certificate.json").read_text())["certificates"]
    verdicts = {profile: counts["verdict"] for profile, counts in certificate["profiles"].items()}
    held = {profile for profile, verdict in verdicts.items() if verdict.startswith("held")}
    assert held == {"Core", "Durable", "Ordered"}
    assert {verdict for profile, verdict in verdicts.items() if profile not in held} == {"not offered"}
    outcomes: dict[str, set[str]] = {}
    for case in cases_of(certificate):
        outcomes.setdefault(case["outcome"], set()).add(case.get("reason", "").partition(" (")[0])
    assert outcomes.keys() <= {"passed", "undeclared", "skipped"}
    # The server is shared: nobody may kill it.
    assert outcomes.get("skipped", set()) <= {"no way to restart the broker was given"}
    assert certificate["versions"]["thalweg-pgqueue"] == "0.1.0"
    assert "asyncpg" in certificate["versions"]


def cases_of(certificate: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for found in certificate["properties"]:
        yield from found["cases"]


PROGRAM = """
import asyncio
from thalweg import App, Retry

app = App("post")
letters = app.topic("letters", key=str, value=str)
parcels = app.queue("parcels", value=str)
delivered = []

@app.handler(letters, on_error=Retry(2, backoff=0.01))
async def deliver(letter: str) -> None:
    if not letter.startswith("Dear"):
        raise ValueError("no address")
    delivered.append(letter)
    await parcels.send(letter.upper())

@app.handler(parcels)
async def carry(parcel: str) -> None:
    delivered.append(parcel)

async def main() -> None:
    async with app:
        await letters.send("Dear Ada", key="a")
        await letters.send("Hey", key="b")
        while not (failed := [letter async for letter in app.dead_letters(letters)]) or len(delivered) < 2:
            await asyncio.sleep(0.02)
        print(app.guarantee, sorted(delivered), [(letter.value, letter.attempts) for letter in failed])

asyncio.run(main())
"""


def test_a_program_runs_on_it_and_one_with_a_table_is_refused(installed: Path, url: str, tmp_path: Path) -> None:
    url = url.replace("lease=0.5", "lease=30")  # on a slow machine half a second ends while a letter is carried
    (tmp_path / "post.py").write_text(PROGRAM.replace('App("post")', f'App("post", broker={url!r})'))
    result = run(installed, tmp_path, "post.py")
    assert result.stdout.strip() == "at_least_once ['DEAR ADA', 'Dear Ada'] [(b'Hey', 2)]", result.stderr
    assert "will be again" not in result.stderr  # a lease that has not ended keeps what failed from coming again
    program = f'from thalweg import App\napp = App("bank", broker={url!r})\ntotals = app.table("totals", value=int)\n'
    (tmp_path / "bank.py").write_text(program)
    result = run(installed, tmp_path, "-c", "from thalweg.cli import main; main()", "-A", "bank:app", "worker")
    assert result.returncode != 0
    assert "table 'totals' needs a transport with the capability 'log'" in " ".join(result.stderr.split())


def test_its_driver_has_at_most_100_lines_of_code_beside_its_imports() -> None:
    source = (EXAMPLE / "thalweg_pgqueue/__init__.py").read_text(encoding="utf-8")
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in silent:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        words = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if words or isinstance(node, ast.Import | ast.ImportFrom):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    assert len(lines) <= 100


def test_what_a_member_takes_that_stood_still_is_its_own(url: str) -> None:
    schema = url.split("schema=")[1].partition("&")[0]

    async def taken() -> list[int]:
        connection = await asyncpg.connect(DATABASE, server_settings={"search_path": schema})
        try:
            await connection.fetch((EXAMPLE / "thalweg_pgqueue/schema.sql").read_text())
            await connection.fetch("SELECT declare('q', 1, true, true)")
            await connection.fetch(
                "SELECT put('q', ARRAY['k']::bytea[], ARRAY['v']::bytea[], ARRAY[NULL]::bytea[], '{0}')"
            )
            first, second = [await connection.fetchval("SELECT enter('q', 'g', 60)") for _ in range(2)]
            await connection.fetch("UPDATE members SET until = now() - lease WHERE id = $1", first)
            take = "SELECT * FROM take($1, 5, '{}')"
            return [len(await connection.fetch(take, member)) for member in (first, second)]
        finally:
            await connection.close()

    assert asyncio.run(taken()) == [1, 0]
