import traceback
from typing import Annotated, Literal

import msgspec
import pytest
from thalweg.errors import ConfigurationError, ThalwegError, UnknownOption
from thalweg.url import Url

SECRET = "hunter2"


def everything_said(error: BaseException) -> str:
    """The exception as any logger may show it: with every cause and context, suppressed ones too."""
    said, seen = "", [error]
    while seen:
        one = seen.pop()
        said += "".join(traceback.format_exception(one, chain=False)) + repr(one) + repr(one.args)
        seen += [chained for chained in (one.__cause__, one.__context__) if chained]
    return said


# --- parts -------------------------------------------------------------------------------------------------


def test_all_parts_are_found() -> None:
    url = Url("kafka://ada:pw@h1:9092,h2,[::1]:9094/a/path?linger=5&compression=lz4")
    assert (url.scheme, url.username, url.password, url.hosts) == ("kafka", "ada", "pw", "h1:9092,h2,[::1]:9094")
    assert (url.path, url.query) == ("/a/path", {"linger": "5", "compression": "lz4"})
    assert url.addresses(9000) == [("h1", 9092), ("h2", 9000), ("::1", 9094)]


@pytest.mark.parametrize("text", ["memory://", "MEMORY://", "  memory://\n"])
def test_missing_parts_are_none_or_empty(text: str) -> None:
    url = Url(text)
    assert (url.scheme, url.username, url.password, url.hosts) == ("memory", None, None, "")
    assert (url.path, url.query) == ("", {})
    assert (url.file, url.addresses(7)) == ("", [("localhost", 7)])


@pytest.mark.parametrize(
    ("text", "username", "password"),
    [
        ("redis://:pw@h", None, "pw"),
        ("redis://user@h", "user", None),
        ("redis://user:@h", "user", None),
        ("redis://@h", None, None),
        ("redis://u:a%3Ab%40c%2Fd%3Fe%23f%25g@h", "u", "a:b@c/d?e#f%g"),
        ("redis://u:a:b@h", "u", "a:b"),
        ("redis://u:a@b@h", "u", "a@b"),
        ("redis://u:a+b&c=d@h", "u", "a+b&c=d"),
        ("redis://us%C3%A9r:p%E2%82%ACss@h", "usér", "p€ss"),
        ("redis://usér:p€ss℀@h", "usér", "p€ss℀"),
        ("kafka://u:a,b@h1,h2", "u", "a,b"),
    ],
)
def test_credentials_are_decoded(text: str, username: str | None, password: str | None) -> None:
    url = Url(text)
    assert (url.username, url.password) == (username, password)
    assert url.hosts in {"h", "h1,h2"}


def test_a_plus_sign_stands_for_itself() -> None:
    assert Url("x://h/a+b?token=a+b%2B").query == {"token": "a+b+"}
    assert Url("x://h/a+b").path == "/a+b"


@pytest.mark.parametrize(
    ("text", "file"),
    [
        ("sqlite:///a.db", "a.db"),
        ("sqlite:////var/a.db", "/var/a.db"),
        ("sqlite:///data@home/a%20b%3F.db", "data@home/a b?.db"),
        ("sqlite://", ""),
    ],
)
def test_three_slashes_name_a_relative_file_and_four_an_absolute_one(text: str, file: str) -> None:
    assert Url(text).file == file


def test_a_file_after_two_slashes_is_not_mistaken_for_a_host() -> None:
    with pytest.raises(ConfigurationError, match="sqlite:///file"):
        _ = Url("sqlite://data/a.db").file


@pytest.mark.parametrize("text", ["my.package:MyTransport", "my.package:MyTransport://", "main:A.B://"])
def test_a_dotted_path_is_a_scheme_and_keeps_its_case(text: str) -> None:
    assert Url(text).scheme == text.removesuffix("://")


def test_a_dotted_path_may_have_all_other_parts() -> None:
    url = Url("my.package:MyTransport://u:pw@host:1/path?opt=1")
    assert (url.scheme, url.password, url.addresses(9), url.query) == (
        "my.package:MyTransport",
        "pw",
        [("host", 1)],
        {"opt": "1"},
    )


# --- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("localhost:9092", "'localhost:9092' has no '://'"),
        ("", "expected one like"),
        ("://h", "expected one like"),
        ("kafka://h:0", "1 to 65535"),
        ("kafka://h:65536", "1 to 65535"),
        ("kafka://h:", "1 to 65535"),
        ("kafka://h:٣", "1 to 65535"),
        ("kafka://h1:1,h2:x", "1 to 65535"),
        ("kafka://:9092", "host:port"),
        ("kafka://h1,,h2", "host:port"),
        ("kafka://h,", "host:port"),
        ("kafka://::1:9092", "brackets"),
        ("kafka://[::1", "brackets"),
        ("kafka://h?opt", "name=value"),
        ("kafka://h?=1", "name=value"),
        ("kafka://h?a=1&a=2", "twice"),
        ("nats://u:p@h1,u:p@h2", "once, before all hosts"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_advice(text: str, advice: str) -> None:
    with pytest.raises(ConfigurationError, match="URL") as caught:
        Url(text)
    assert advice in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        f"{SECRET}",
        f"user:{SECRET}@host",
        f"redis//u:{SECRET}@host",
        f"redis://user:{SECRET}",
        f"redis://:{SECRET}/x@host/0",
        f"redis://:12/{SECRET}@host/0",
        f"redis://u:1@2/{SECRET}@host",
        f"redis://u:{SECRET}?x@host",
        f"redis://u:12?{SECRET}@host",
        f"redis://u:12?{SECRET}",
        f"redis://u:12#{SECRET}@host",
        f"redis://u:{SECRET} x@host",
        f"redis://u:{SECRET}\nx@host",
        f"redis://u:{SECRET}\udcff@host",
        f"redis://u:{SECRET}%ff@host",
        f"redis://u:{SECRET}%00@host",
        f"redis://u:{SECRET}@[host",
        f"redis://u:{SECRET}@host:port",
        f"nats://u:{SECRET}@h1,u:{SECRET}@h2",
        f"redis://h?password={SECRET}&password={SECRET}",
    ],
)
def test_a_refusal_does_not_reveal_the_password_not_even_in_its_context(text: str) -> None:
    try:
        url = Url(text)
    except ConfigurationError as error:
        # pytest's own frames quote this file's source: only the text of exceptions counts.
        shown = [str(error), repr(error), str(error.__context__), str(error.__cause__)]
        assert SECRET not in "".join(shown) or text == SECRET
    else:
        pytest.fail(f"accepted as {url}")


# --- what is shown -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://u:pw@h:1/0?db=1", "redis://u:***@h:1/0?db=1"),
        ("redis://:pw@h", "redis://:***@h"),
        ("redis://u:@h", "redis://***@h"),
        ("nats://token@h1,h2", "nats://***@h1,h2"),
        ("redis://u:a:b@c@h", "redis://u:***@h"),
        ("kafka://h?sasl_password=pw&linger=5&x-api-KEY=k", "kafka://h?sasl_password=***&linger=5&x-api-KEY=***"),
        ("kafka://h?proxy=http://u:pw@p", "kafka://h?proxy=***"),
        ("a.b:C://u:pw@h", "a.b:C://u:***@h"),
    ],
)
def test_credentials_are_never_shown(text: str, shown: str) -> None:
    url = Url(text)
    assert str(url) == shown
    assert repr(url) == f"Url({shown!r})"
    assert f"{url}" == shown


def test_a_client_library_that_quotes_the_url_is_redacted() -> None:
    url = Url("redis://u:p%40ss@h?auth_token=t0k")
    assert url.redact(f"cannot connect to {url.text}: 'p@ss' or p%40ss or t0k is wrong") == (
        "cannot connect to redis://u:***@h?auth_token=***: '***' or *** or *** is wrong"
    )
    assert Url("nats://to%2Fken@h").redact("bad to/ken") == "bad ***"
    assert Url("redis://h").redact("nothing to hide in redis://h") == "nothing to hide in redis://h"


# --- options -----------------------------------------------------------------------------------------------


class Options(msgspec.Struct, frozen=True):
    linger: float = 0.0
    acks: Literal["all", "1"] = "all"
    idempotent: bool = True
    batch: Annotated[int, msgspec.Meta(ge=1)] | None = None
    pin_code: int = 0
    token: Literal["a", "b"] = "a"


class Needs(msgspec.Struct):
    must: int


def test_options_are_typed() -> None:
    url = Url("x://h?linger=0.5&acks=1&idempotent=false&batch=7")
    assert url.options(Options) == Options(linger=0.5, acks="1", idempotent=False, batch=7)
    assert Url("x://h").options(Options) == Options()


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("lingr=1", ["'lingr'. Did you mean 'linger'?", "linger (float)", "acks (all|1)", "batch (int)"]),
        ("linger=soon", ["linger='soon'", "float"]),
        ("acks=2", ["acks='2'", "all|1"]),
        ("batch=0", ["batch='0'"]),
        ("linger=", ["linger=''"]),
        ("nonsense=", ["'nonsense'; its options"]),
    ],
)
def test_a_wrong_option_is_named_with_its_value_and_the_known_ones(query: str, said: list[str]) -> None:
    with pytest.raises(UnknownOption) as caught:
        Url(f"x://h?{query}").options(Options)
    assert all(part in str(caught.value) for part in said), caught.value


def test_a_missing_option_is_named() -> None:
    with pytest.raises(UnknownOption, match="must"):
        Url("x://h").options(Needs)


@pytest.mark.parametrize("query", [f"token={SECRET}", f"password={SECRET}", f"batch=http://u:{SECRET}@h"])
def test_a_wrong_secret_option_is_not_shown(query: str) -> None:
    url = Url(f"x://h?{query}")
    with pytest.raises(ThalwegError) as caught:
        url.options(Options)
    assert SECRET not in everything_said(caught.value)
