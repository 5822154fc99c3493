"""Drivers are found by scheme or dotted path. Other distributions are real ones: metadata in a folder on `sys.path`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from importlib.metadata import metadata
from pathlib import Path

import pytest
from thalweg.errors import ConfigurationError, UnknownOption, UnknownScheme
from thalweg.registry import installed_stores, installed_transports, load_stores, load_transport
from thalweg.store import Store
from thalweg.url import Url

DRIVER = """
class AcmeStores:
    def __init__(self, url):
        self.description = f"acme at {url.addresses(4711)}, {dict(url.query)}"

    @classmethod
    def from_url(cls, url):
        return cls(url)

    def open(self, name): ...
    def remove(self, name): ...
    def close(self): ...
"""


def install(folder: Path, distribution: str, module: str, code: str, **groups: dict[str, str]) -> None:
    """Install a distribution of one module; `stores={"scheme": "module:Class"}` are its entry points."""
    (folder / f"{module}.py").write_text(textwrap.dedent(code))
    metadata = folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    lines = []
    for group, entries in groups.items():
        lines += [f"[thalweg.{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines))


def run(folder: Path, code: str) -> dict[str, str]:
    """Run code in a new interpreter that has `folder` on its path; its variables that are strings, and `modules`."""
    script = f"{textwrap.dedent(code)}\nimport json, sys\nmodules = ' '.join(sys.modules)\n" + (
        "print(json.dumps({k: v for k, v in globals().items() if isinstance(v, str)}))"
    )
    env = {**os.environ, "PYTHONPATH": str(folder), "XDG_CACHE_HOME": str(folder / "cache")}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    said: dict[str, str] = json.loads(done.stdout)
    return said


def attempt(folder: Path, url: str, load: str = "load_stores", before: str = "") -> dict[str, str]:
    """Load a URL in a new interpreter: `made` is the description of what it gives, or `error` the type and message."""
    return run(
        folder,
        f"""
        {before}
        from thalweg.registry import {load}
        error = made = ""
        try:
            made = {load}({url!r}).description
        except Exception as e:
            error, cause = f"{{type(e).__name__}}: {{e}}", repr(e.__cause__)
        """,
    )


# --- what is built in --------------------------------------------------------------------------------------


def test_the_built_in_schemes_are_installed() -> None:
    assert {"memory", "sqlite"} <= set(installed_transports())
    assert {"memory", "rocksdb", "sqlite"} <= set(installed_stores())


@pytest.mark.parametrize("load", ["load_stores", "load_transport"])
def test_only_the_chosen_driver_is_imported(tmp_path: Path, load: str) -> None:
    said = run(tmp_path, f"from thalweg.registry import {load}\nchosen = type({load}('memory://')).__module__")
    assert said["chosen"].startswith(("thalweg.stores.memory", "thalweg.transports.memory"))
    modules = set(said["modules"].split())
    assert not {"sqlite3", "rocksdict"} & modules
    drivers = {
        module.split(".")[2] for module in modules if module.startswith(("thalweg.stores.", "thalweg.transports."))
    }
    assert drivers - {"paging"} == {"memory"}


def test_nothing_is_cached_on_disk(tmp_path: Path) -> None:
    attempt(tmp_path, "memory://")
    assert not (tmp_path / "cache").exists()


def test_an_object_is_returned_as_it_is() -> None:
    transport, stores = load_transport("memory://"), load_stores("memory://")
    assert load_transport(transport) is transport
    assert load_stores(stores) is stores


def test_a_parsed_url_will_do_too() -> None:
    assert type(load_stores(Url("memory://"))) is type(load_stores("memory://"))


# --- schemes that nobody serves ------------------------------------------------------------------------------


def test_an_unknown_scheme_lists_the_installed_ones() -> None:
    with pytest.raises(UnknownScheme, match="kafak://u:\\*\\*\\*@h") as caught:
        load_transport("kafak://u:hunter2@h")
    assert "memory://, " in str(caught.value)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(UnknownScheme, match="memory://, rocksdb://, sqlite://"):
        load_stores("leveldb:///x")


@pytest.mark.parametrize(("typo", "meant"), [("memmory", "memory"), ("sqlit", "sqlite"), ("redsi", "redis")])
def test_a_typing_error_is_answered_with_what_was_meant(typo: str, meant: str) -> None:
    with pytest.raises(UnknownScheme, match=f"Did you mean {meant}://"):
        load_transport(f"{typo}://host")


@pytest.mark.parametrize("scheme", ["redis", "rediss", "postgresql"])
def test_a_mirror_is_not_taken_for_a_store(scheme: str) -> None:
    with pytest.raises(UnknownScheme, match="mirror="):
        load_stores(f"{scheme}://host")


@pytest.mark.parametrize(
    ("load", "scheme", "module", "extra"),
    [
        ("load_stores", "rocksdb", "rocksdict", "rocksdb"),
        ("load_transport", "amqps", "aiormq", "rabbitmq"),
        ("load_transport", "kafka", "aiokafka", "kafka"),
        ("load_transport", "rediss", "hiredis", "redis"),
        ("load_mirrors", "redis", "hiredis", "redis"),
        ("load_mirrors", "postgresql", "asyncpg", "postgres"),
    ],
)
def test_a_missing_dependency_names_the_extra_that_brings_it(
    tmp_path: Path, load: str, scheme: str, module: str, extra: str
) -> None:
    said = attempt(tmp_path, f"{scheme}://u:hunter2@x", before=f"import sys; sys.modules['{module}'] = None", load=load)
    assert f"{scheme}://u:***@x" in said["error"]
    assert f'pip install "thalweg[{extra}]"' in said["error"]
    assert extra in (metadata("thalweg").get_all("Provides-Extra") or ())
    assert "hunter2" not in said["error"]


def test_a_missing_dependency_is_named_to_who_imports_the_driver_itself(tmp_path: Path) -> None:
    code = """
    import sys
    sys.modules["rocksdict"] = None
    try:
        import thalweg.stores.rocksdb
    except ModuleNotFoundError as error:
        said = str(error)
    """
    assert "thalweg[rocksdb]" in run(tmp_path, code)["said"]


# --- other distributions -----------------------------------------------------------------------------------


def test_a_scheme_of_another_distribution_works(tmp_path: Path) -> None:
    install(tmp_path, "acme-driver", "acme", DRIVER, stores={"acme": "acme:AcmeStores"})
    assert attempt(tmp_path, "acme://h1,h2:1?x=2")["made"] == "acme at [('h1', 4711), ('h2', 1)], {'x': '2'}"
    assert "acme://" in attempt(tmp_path, "unknown://")["error"]
    assert attempt(tmp_path, "acme://", load="load_transport")["error"].startswith("UnknownScheme")


def test_a_distribution_that_is_installed_anew_is_seen_at_once(tmp_path: Path) -> None:
    """Same file, same length, same minute: a cache by file times would not notice."""
    install(tmp_path, "acme-driver", "acme", DRIVER, stores={"acme": "acme:AcmeStores"})
    assert attempt(tmp_path, "acme://")["made"]
    points = tmp_path / "acme_driver-1.0.dist-info" / "entry_points.txt"
    points.write_text(points.read_text().replace("acme =", "emca ="))
    assert attempt(tmp_path, "emca://")["made"]
    assert attempt(tmp_path, "acme://")["error"].startswith("UnknownScheme")


def test_a_scheme_that_two_distributions_claim_is_refused_and_neither_is_imported(tmp_path: Path) -> None:
    for name in ("one", "two"):
        install(tmp_path, f"acme-{name}", f"acme_{name}", DRIVER, stores={"acme": f"acme_{name}:AcmeStores"})
    said = attempt(tmp_path, "acme://u:hunter2@h")
    assert said["error"].startswith("ConfigurationError: store acme://u:***@h")
    assert "acme-one and acme-two" in said["error"]
    assert "acme_two:AcmeStores://" in said["error"]
    assert not {"acme_one", "acme_two"} & set(said["modules"].split())
    assert attempt(tmp_path, "acme_two:AcmeStores://")["made"]


def test_nobody_can_replace_a_built_in_scheme(tmp_path: Path) -> None:
    install(tmp_path, "evil", "evil", DRIVER, stores={"memory": "evil:AcmeStores"})
    said = attempt(tmp_path, "memory://")
    assert said["error"].startswith("ConfigurationError")
    assert "evil and thalweg" in said["error"]


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("import no_such_client", "ModuleNotFoundError: No module named 'no_such_client'"),
        ("1 / 0", "ZeroDivisionError"),
        ("class Other: ...", "AttributeError"),
    ],
)
def test_a_driver_that_cannot_be_imported_is_named_with_its_distribution(
    tmp_path: Path, code: str, problem: str
) -> None:
    install(tmp_path, "acme-driver", "acme", code, stores={"acme": "acme:AcmeStores", "kafka": "acme:AcmeStores"})
    said = attempt(tmp_path, "acme://u:hunter2@h")
    assert said["error"].startswith("ConfigurationError: store acme://u:***@h")
    assert problem in said["error"]
    assert "acme-driver" in said["error"]
    assert said["cause"] != "None"
    assert "thalweg[" not in attempt(tmp_path, "kafka://")["error"]  # not ours: our extra would not help


# --- dotted paths ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["acme:AcmeStores", "acme:AcmeStores://h?x=1", "acme:Nested.AcmeStores"])
def test_a_dotted_path_names_a_driver(tmp_path: Path, text: str) -> None:
    (tmp_path / "acme.py").write_text(f"{DRIVER}\nclass Nested:\n    AcmeStores = AcmeStores")
    assert attempt(tmp_path, text)["made"].startswith("acme at")


@pytest.mark.parametrize("text", ["no_such.module:Class", "thalweg.stores.memory:Nothing", "thalweg.errors:"])
def test_a_dotted_path_to_nothing_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot be imported|not a URL"):
        load_stores(text)


def test_a_class_without_from_url_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="from_url"):
        load_stores("thalweg.stores.memory:MemoryStore://h")


# --- what is not a driver ------------------------------------------------------------------------------------


def test_a_class_is_not_an_object() -> None:
    with pytest.raises(ConfigurationError, match="not the class"):
        load_stores(type(load_stores("memory://")))  # type: ignore[arg-type]


def test_what_an_object_lacks_is_said() -> None:
    class Half:
        @property
        def description(self) -> str:
            raise RuntimeError("properties may need `open` first: only their presence counts")

        def open(self, name: str) -> Store: ...

    with pytest.raises(ConfigurationError, match="Half is not a Stores: it lacks close, remove"):
        load_stores(Half())  # type: ignore[arg-type]


def test_an_object_that_delegates_is_trusted() -> None:
    class Wrapper:
        def __getattr__(self, name: str) -> object:
            return getattr(stores, name)

    stores, wrapper = load_stores("memory://"), Wrapper()
    assert load_stores(wrapper) is wrapper  # type: ignore[arg-type, comparison-overlap]


# --- secrets -----------------------------------------------------------------------------------------------


def test_a_driver_that_quotes_the_password_is_redacted_and_its_exception_left_out(tmp_path: Path) -> None:
    code = """
    class Careless:
        @classmethod
        def from_url(cls, url):
            try:
                raise KeyError(url.text)
            except KeyError:
                raise ValueError(f"cannot use {url.text}, as {url.password} is wrong")
    """
    (tmp_path / "careless.py").write_text(textwrap.dedent(code))
    said = run(
        tmp_path,
        """
        import traceback
        from thalweg.registry import load_transport
        try:
            load_transport("careless:Careless://u:hunter2@h")
        except Exception as e:
            error, context, cause = repr(e), repr(e.__context__), repr(e.__cause__)
            trace = traceback.format_exc()
        """,
    )
    assert said["error"].startswith("ConfigurationError")
    assert "cannot use careless:Careless://u:***@h, as *** is wrong" in said["error"]
    assert said["context"] == said["cause"] == "None"
    assert "hunter2" not in said["trace"].replace('load_transport("careless:Careless://u:hunter2@h")', "")


def test_a_driver_that_fails_without_quoting_the_password_stays_the_cause(tmp_path: Path) -> None:
    (tmp_path / "faulty.py").write_text(
        "class Faulty:\n    @classmethod\n    def from_url(cls, url):\n        raise ValueError('no')"
    )
    said = attempt(tmp_path, "faulty:Faulty://u:hunter2@h")
    assert said["error"] == "ConfigurationError: store faulty:Faulty://u:***@h: ValueError: no"
    assert said["cause"] == "ValueError('no')"


def test_what_a_driver_itself_refuses_is_raised_unchanged() -> None:
    with pytest.raises(UnknownOption, match="nonsense"):
        load_stores("memory://?nonsense=1")
