from __future__ import annotations

import dataclasses
import enum
import subprocess
import sys
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, TypedDict, TypeVar

import msgspec
import pydantic
import pytest
import typing_extensions
from hypothesis import given
from hypothesis import strategies as st
from thalweg.codec import (
    DECODE_ERRORS,
    ENCODE_ERRORS,
    checker_for,
    codec_for,
    explain,
    explain_encode,
    key_codec_for,
)
from thalweg.errors import ConfigurationError, DecodeError, EncodeError, WrongType
from thalweg.type_facts import is_immutable

T = TypeVar("T")


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


class Number(enum.IntEnum):
    ONE = 1


class Withdrawal(msgspec.Struct):
    account: str
    amount: int = 0


class Point(msgspec.Struct, frozen=True):
    x: int
    y: int


class Opened(msgspec.Struct, tag=True):
    name: str


class Closed(msgspec.Struct, tag=True):
    why: str


class Node(msgspec.Struct, frozen=True):
    name: str
    next: Node | None = None


class Pair(msgspec.Struct, Generic[T]):
    left: T
    right: T


@dataclasses.dataclass
class Order:
    id: int
    lines: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Money:
    cents: int
    currency: str


@dataclasses.dataclass(frozen=True)
class Tagged:
    id: int
    note: str = dataclasses.field(default="", compare=False)


class Visit(NamedTuple):
    page: str
    hits: int


class Options(TypedDict, total=False):
    depth: int


class User(pydantic.BaseModel):
    name: str
    born: date | None = None


class Robot(pydantic.BaseModel):
    serial: int


@pydantic.dataclasses.dataclass
class Checked:
    size: int


@dataclasses.dataclass
class Team:
    members: list[User]


class Mixed(msgspec.Struct):
    user: User


class Untagged(msgspec.Struct):
    name: str


class ById:
    """A plain class that no codec knows."""

    def __init__(self, text: str) -> None:
        self.text = text


class ByIdCodec:
    def encode(self, value: ById) -> bytes:
        return value.text.encode()

    def decode(self, data: bytes) -> ById:
        if data == b"bad":
            raise KeyError(data)
        return ById(data.decode())


by_id_codec = ByIdCodec()

AccountId = NewType("AccountId", str)
Alias = typing_extensions.TypeAliasType("Alias", AccountId)
Short = Annotated[str, msgspec.Meta(max_length=3)]

TYPES: list[tuple[Any, Any]] = [
    (int, 5),
    (float, 2.5),
    (bool, True),
    (str, "naïve"),
    (bytes, b"\x00\xff"),
    (type(None), None),
    (Any, {"a": [1, None, "x"]}),
    (list[int], [1, 2]),
    (dict[str, list[Withdrawal]], {"a": [Withdrawal("ada", 1)]}),
    (dict[int, float], {1: 2.0}),
    (tuple[int, str], (1, "a")),
    (set[int], {1, 2}),
    (Mapping[str, int], {"a": 1}),
    (int | str | None, None),
    (Opened | Closed, Closed("done")),
    (Withdrawal, Withdrawal("ada", 3)),
    (Pair[int], Pair(1, 2)),
    (Node, Node("a", Node("b"))),
    (Order, Order(1, ["x"])),
    (Visit, Visit("/", 3)),
    (Options, {"depth": 3}),
    (Literal["a", "b"], "a"),
    (Color, Color.BLUE),
    (datetime, datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)),
    (date, date(2026, 1, 2)),
    (time, time(3, 4)),
    (timedelta, timedelta(seconds=1.5)),
    (Decimal, Decimal("1.10")),
    (uuid.UUID, uuid.UUID(int=7)),
    (Annotated[int, msgspec.Meta(ge=0)], 3),
    (AccountId, "ada"),
    (Alias, "ada"),
    (Short, "abc"),
    (User, User(name="ada", born=date(1815, 12, 10))),
    (User | Robot, Robot(serial=3)),
    (list[User | None], [User(name="ada"), None]),
    (Annotated[User | Robot, pydantic.Field(union_mode="left_to_right")], User(name="ada")),
    (Checked, Checked(3)),
    (Team, Team([User(name="ada")])),
]


@pytest.mark.parametrize("codec", ["json", "msgpack", None])
@pytest.mark.parametrize(("type_", "value"), TYPES, ids=lambda part: str(part)[:40])
def test_every_supported_type_comes_back_equal_and_passes_its_own_check(type_: Any, value: Any, codec: Any) -> None:
    bound = codec_for(type_, codec)
    data = bound.encode(value)
    assert type(data) is bytes
    back = bound.decode(data)
    assert back == value
    assert type(back) is type(value)
    _, check = checker_for(type_, codec)
    check(value)


def test_text_and_bytes_travel_as_they_are_by_default() -> None:
    assert codec_for(str).encode("naïve") == "naïve".encode()
    assert codec_for(Alias).encode(AccountId("ada")) == b"ada"
    assert codec_for(Short).encode("abc") == b"abc"
    assert codec_for(str, "raw").encode("abc") == b"abc"
    data = b"payload"
    assert codec_for(bytes).encode(data) is data
    assert codec_for(bytes).decode(data) is data
    assert codec_for(str, "json").encode("abc") == b'"abc"'


def test_constraints_on_text_are_checked() -> None:
    with pytest.raises(DECODE_ERRORS, match="length <= 3"):
        codec_for(Short).decode(b"abcd")


def test_no_python_function_stands_between_the_caller_and_the_codec() -> None:
    types: list[Any] = [int, str, bytes, Withdrawal, Order, dict[str, int], User, User | Robot]
    for type_ in types:
        bound = codec_for(type_)
        for method in (bound.encode, bound.decode):
            assert not hasattr(method, "__code__"), (type_, method)
            assert not hasattr(getattr(method, "__func__", None), "__code__"), (type_, method)


def test_codec_objects_serve_types_that_nothing_else_knows() -> None:
    for codec in (by_id_codec, f"{__name__}:by_id_codec"):
        bound = codec_for(ById, codec)
        assert bound.decode(bound.encode(ById("x"))).text == "x"
        exact, check = checker_for(ById, codec)
        assert exact is ById
        check(ById("x"))
        with pytest.raises(DECODE_ERRORS) as caught:
            bound.decode(b"bad")
        assert "expected ById (ByIdCodec())" in str(explain(bound, caught.value, b"bad"))


@pytest.mark.parametrize(
    ("type_", "codec", "words"),
    [
        (ById, None, ["ById", "codec="]),
        (list[ById], None, ["list[", "ById", "codec="]),
        (Withdrawal | Untagged, None, ["Withdrawal", "Untagged", "tag=True"]),
        (Mixed, None, ["Mixed", "cannot mix"]),
        (dict[tuple[int, int], str], None, ["keys of a dict", "msgpack"]),
        (str | bytes, None, ["str | bytes", "codec="]),
        (int, "raw", ["codec='raw'", "int"]),
        (int, "pickle", ["codec='pickle'", "'json', 'msgpack', 'raw'"]),
        (int, "no.such.module:codec", ["codec='no.such.module:codec'"]),
        (int, f"{__name__}:nothing", ["has no 'nothing'"]),
        (int, f"{__name__}:__name__", ["expected an object with encode(value) and decode(data)"]),
        (int, ByIdCodec, ["expected an object with encode(value) and decode(data)"]),
        (int, 3, ["codec=3"]),
    ],
)
def test_what_cannot_work_is_refused_at_declaration_with_a_remedy(type_: Any, codec: Any, words: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        codec_for(type_, codec)
    for word in words:
        assert word in str(caught.value)


def test_msgpack_takes_any_dict_keys() -> None:
    bound = codec_for(dict[tuple[int, int], str], "msgpack")
    assert bound.decode(bound.encode({(1, 2): "a"})) == {(1, 2): "a"}


@pytest.mark.parametrize(
    ("type_", "data"),
    [
        (Withdrawal, b'{"amount": "many"}'),
        (int, b""),
        (int, b"12x"),
        (str, b"\xff\xfe"),
        (User, b'{"nome": "ada"}'),
        (Any, b"[" * 100_000),
        (date, b'"2026-02-30"'),
    ],
)
def test_undecodable_bytes_raise_an_error_that_names_the_type_and_shows_a_little(type_: Any, data: bytes) -> None:
    bound = codec_for(type_)
    with pytest.raises(DECODE_ERRORS) as caught:
        bound.decode(data)
    error = explain(bound, caught.value, data)
    assert isinstance(error, DecodeError)
    assert bound.type_name in str(error)
    assert f"got {len(data)} bytes" in str(error)
    assert len(str(error)) < 600


@given(st.binary(max_size=300))
def test_random_bytes_never_raise_anything_but_decode_errors(data: bytes) -> None:
    explained: list[str] = []
    for type_ in (Withdrawal, str, bytes, User):
        bound = codec_for(type_)
        try:
            bound.decode(data)
        except DECODE_ERRORS as error:
            explained.append(str(explain(bound, error, data)))
    assert all(text.startswith("expected ") for text in explained)


def test_a_whole_payload_is_never_shown() -> None:
    secret = b'{"amount": "' + b"s" * 5_000 + b'"}'
    for type_ in (Withdrawal, User):
        bound = codec_for(type_)
        with pytest.raises(DECODE_ERRORS) as caught:
            bound.decode(secret)
        assert str(explain(bound, caught.value, secret)).count("s") < 300


@pytest.mark.parametrize(
    ("type_", "value"), [(int, ById("x")), (str, 3), (bytes, "x"), (bytes, 5), (str, "\ud800"), (dict, {(1, 2): 3})]
)
def test_what_cannot_be_encoded_raises_an_error_that_names_both_types(type_: Any, value: Any) -> None:
    bound = codec_for(type_)
    with pytest.raises(ENCODE_ERRORS) as caught:
        bound.encode(value)
    error = explain_encode(bound, caught.value, value)
    assert isinstance(error, EncodeError)
    assert f"expected {bound.type_name}" in str(error)
    assert f"got {type(value).__name__}" in str(error)


def test_errors_of_the_program_s_own_codec_pass_unchanged() -> None:
    mine, other = DecodeError("mine"), EncodeError("mine")
    assert explain(codec_for(int), mine, b"") is mine
    assert explain_encode(codec_for(int), other, 3) is other


class Dict(dict[str, int]):
    pass


@pytest.mark.parametrize(
    ("type_", "codec", "value"),
    [
        (int, None, True),
        (int, None, "1"),
        (int, None, 1.0),
        (int, None, None),
        (int, None, Number.ONE),
        (int, "msgpack", 1 << 64),
        (float, None, float("nan")),
        (float, None, float("inf")),
        (float, None, True),
        (dict[str, float], None, {"a": float("inf")}),
        (str, None, b"x"),
        (bytes, None, bytearray(b"x")),
        (bool, None, 1),
        (list[int], None, (1, 2)),
        (list[int], None, ["1"]),
        (dict[str, int], None, Dict(a=1)),
        (dict[str, int], None, {1: 1}),
        (int | None, None, "x"),
        (Withdrawal, None, Untagged("x")),
        (Withdrawal, None, {"account": "ada"}),
        (Any, None, Withdrawal("ada")),
        (Any, None, {"a": (1, 2)}),
        (Any, None, date(2026, 1, 1)),
        (date, None, datetime(2026, 1, 1, tzinfo=UTC)),
        (Short, None, "abcd"),
        (User, None, Robot(serial=3)),
        (Rights, None, "read"),
        (Any, None, ById("x")),
    ],
)
def test_values_that_would_not_come_back_as_they_are_are_rejected(type_: Any, codec: Any, value: Any) -> None:
    exact, check = checker_for(type_, codec)
    assert value.__class__ is not exact
    with pytest.raises(WrongType) as caught:
        check(value)
    got = value if type_ is float and isinstance(value, float) else type(value).__name__
    assert f"expected {codec_for(type_, codec).type_name}, got {got}" in str(caught.value)


class Identity(msgspec.Struct, eq=False):
    x: int


@pytest.mark.parametrize(
    ("type_", "codec", "value", "exact"),
    [
        (int, None, 1 << 70, int),
        (int, "msgpack", (1 << 64) - 1, None),
        (float, None, 1, None),
        (float, None, -0.0, None),
        (float, "msgpack", float("nan"), float),
        (int | None, None, None, int),
        (list[Identity], None, [Identity(1)], None),
        (list[float], "msgpack", [float("nan")], None),
        (Withdrawal, None, Withdrawal("ada"), Withdrawal),
        (Pair[int], None, Pair(1, 2), None),
        (Color, None, Color.RED, Color),
        (Rights, None, Rights.READ, None),
        (bytes, None, b"", bytes),
        (Short, None, "abc", None),
        (User, None, User(name="x"), User),
        (Order, None, Order(1), Order),
        (Visit, None, Visit("/", 1), Visit),
    ],
)
def test_values_that_come_back_are_accepted_and_exact_classes_known(
    type_: Any, codec: Any, value: Any, exact: Any
) -> None:
    found, check = checker_for(type_, codec)
    assert found is exact
    check(value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3) | st.tuples(inner),
    max_leaves=8,
)


@given(JSON, st.sampled_from(["json", "msgpack"]))
def test_whatever_a_check_lets_pass_comes_back(value: object, codec: str) -> None:
    types: list[Any] = [Any, int, float, str, list[int], dict[str, float], int | str | None, date]
    for type_ in types:
        bound = codec_for(type_, codec)
        exact, check = checker_for(type_, codec)
        if value.__class__ is not exact:
            try:
                check(value)
            except WrongType:
                continue
        back = bound.decode(bound.encode(value))
        assert back == value or bound.encode(back) == bound.encode(value)


@pytest.mark.parametrize(
    ("type_", "keys"),
    [
        (str, ["", "a"]),
        (bytes, [b""]),
        (int, [0, -1, 1 << 80]),
        (int | str | None, [1, "1", None]),
        (bool, [True, False]),
        (Color, list(Color)),
        (Literal[1, 2], [1, 2]),
        (date, [date(2026, 1, 1)]),
        (uuid.UUID, [uuid.UUID(int=1)]),
        (tuple[int, str], [(1, "a")]),
        (tuple[int, ...], [(), (1,), (1, 2)]),
        (Point, [Point(1, 2)]),
        (Node, [Node("a", Node("b"))]),
        (Money, [Money(1, "EUR")]),
        (Visit, [Visit("/", 1)]),
        (Annotated[datetime, msgspec.Meta(tz=False)], [datetime(2026, 1, 1)]),
        (AccountId, ["ada"]),
        (Annotated[int, msgspec.Meta(title="account")], [1]),
    ],
)
@pytest.mark.parametrize("codec", [None, "msgpack"])
def test_keys_have_one_encoding_each(type_: Any, keys: list[Any], codec: Any) -> None:
    bound = key_codec_for(type_, codec)
    small = [key for key in keys if codec is None or not (isinstance(key, int) and key > 1 << 64)]
    encoded = [bound.encode(key) for key in small]
    assert len(set(encoded)) == len(small)
    assert [bound.encode(bound.decode(data)) for data in encoded] == encoded
    assert [bound.decode(data) for data in encoded] == small


@pytest.mark.parametrize(
    ("type_", "why"),
    [
        (dict[str, int], "cannot be hashed"),
        (list[int], "cannot be hashed"),
        (Options, "cannot be hashed"),
        (frozenset[int], "order of a set"),
        (Decimal, "1.00"),
        (datetime, "different zones"),
        (time, "different zones"),
        (tuple[int, float], "0.0 == -0.0"),
        (float | None, "0.0 == -0.0"),
        (int | bool, "1 == True"),
        (Withdrawal, "not frozen"),
        (Order, "not frozen"),
        (tuple[Point, Withdrawal], "not frozen"),
        (Tagged, "does not compare by all"),
        (User, "pydantic"),
        (Any, "equal values may have different bytes"),
    ],
)
def test_types_whose_equal_keys_may_differ_in_bytes_are_refused(type_: Any, why: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be a key") as caught:
        key_codec_for(type_)
    assert why in str(caught.value)


def test_equal_float_keys_have_equal_bytes() -> None:
    for codec in (None, "msgpack"):
        bound = key_codec_for(float, codec)
        assert bound.encode(0.0) == bound.encode(-0.0) == bound.encode(0)
        assert bound.encode(7) == bound.encode(7.0)
        assert bound.decode(bound.encode(2.5)) == 2.5
        wrong: list[Any] = [float("nan"), float("inf"), True, "1"]
        for key in wrong:
            with pytest.raises(EncodeError, match="cannot be a key"):
                bound.encode(key)


def test_a_codec_object_answers_for_its_keys_itself() -> None:
    bound = key_codec_for(ById, by_id_codec)
    assert bound.encode(ById("x")) == b"x"


@pytest.mark.parametrize(
    "form",
    [
        int,
        float,
        str,
        bytes,
        bool,
        type(None),
        Decimal,
        datetime,
        date,
        time,
        timedelta,
        uuid.UUID,
        Color,
        Number,
        Point,
        Node,
        Money,
        Visit,
        int | str | None,
        tuple[int, str],
        tuple[Point, ...],
        frozenset[int],
        AccountId,
        Short,
        Literal["a"],
    ],
)
def test_immutable(form: Any) -> None:
    assert is_immutable(form)


class Loose(msgspec.Struct, frozen=True):
    tags: list[str]


class LooseVisit(NamedTuple):
    tags: list[str]


@pytest.mark.parametrize(
    "form",
    [
        list,
        dict[str, int],
        set[int],
        tuple,
        tuple[int, list[int]],
        frozenset,
        object,
        Any,
        bytearray,
        Withdrawal,
        Order,
        Loose,
        LooseVisit,
        Options,
        User,
        Checked,
        ById,
        int | list[int],
        Pair[int],
    ],
)
def test_mutable(form: Any) -> None:
    assert not is_immutable(form)


def test_aware_datetimes_survive_as_equal_instants() -> None:
    bound = codec_for(datetime)
    east = datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=3)))
    assert bound.decode(bound.encode(east)) == east


def test_pydantic_is_not_imported_for_other_types() -> None:
    program = (
        "import sys, dataclasses, msgspec\n"
        "from thalweg.codec import codec_for, checker_for, key_codec_for\n"
        "@dataclasses.dataclass\n"
        "class A: x: int\n"
        "class B(msgspec.Struct): a: A\n"
        "codec_for(B); checker_for(list[A]); key_codec_for(int)\n"
        "assert 'pydantic' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_types_are_inferred() -> None:
    decode: Callable[[bytes], int | None] = codec_for(int | None).decode
    assert decode(b"3") == 3
