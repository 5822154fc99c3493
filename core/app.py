"""The app: what a program declares. Starting it is in `starting.py`, running it in `runtime/`."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, overload

from typing_extensions import ParamSpec, TypeForm, TypeVar

from .agent import Agent, AgentDecorator, HandlerDecorator, Sink, answer_codec, check_takes_stream
from .assignment import Assignor, load_assignor
from .channel import TopicSpec, Transport
from .clock import Clock, RealClock
from .codec import Codec, TypeCodec, checker_for, codec_for, key_codec_for
from .duration import seconds
from .environment import FromEnvironment
from .errors import ConfigurationError, NotRunning
from .exclusion import HeldLock, exclusively, locked
from .functions import check_function
from .handler import handler_body
from .message import Headers, Message
from .mirror import Mirrors
from .partitioner import partitioner_for
from .plan import SourcePlan, TopicPlan
from .policy import DEFAULT_POLICY, Policy
from .queue import Queue
from .runtime.changes import Change, change_codec, changes_topic
from .runtime.running import Running
from .runtime.tables import TablePlan
from .schedule import Background, Crontab, Function, Misfire, Timer
from .signing import signer_of
from .store import Stores
from .stream import Stream
from .table import Table
from .topic import Start, Topic
from .type_facts import is_immutable
from .upgrades import Upgrade, with_upgrades

if TYPE_CHECKING:
    from .dead_letters import DeadLetterRecord
    from .portal import Portal
    from .testing import AppTest
    from .topic_table import Replica

__all__ = ["App"]

K = TypeVar("K", default=str)
V = TypeVar("V", default=bytes)
T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")
F = TypeVar("F", bound=Function)
Guarantee = Literal["auto", "exactly_once", "at_least_once"]
Source = Stream[T] | Topic[Any, T] | Queue[Any, T] | Sequence[Topic[Any, T]]


class App:
    """A stream program: declare topics, tables, agents… on it, then run it (`main`, `serve`, `async with app`).

    id: workers of the same id share the work. It begins the names that the app makes for itself (journals, groups,
    repartition topics), and no others.
    broker, store: URLs, or objects; `--broker` beats the variable THALWEG_BROKER, which beats `broker=` (likewise
    THALWEG_STORE; `env_prefix=` where two apps share a process).
    mirror: a URL (`redis://…`, `postgresql://…`) or object: where other programs read what each table holds that names
    no mirror itself.
    partitions: of topics that the app creates, and so the most workers that can share them.
    guarantee: "auto" is the strongest that the broker gives; "exactly_once" refuses to start without it;
    "at_least_once" saves a little where the broker has no fencing.
    commit_interval: seconds (or timedelta) that a finished event waits for its commit, at most.
    lease: seconds after which the tasks of a worker that hangs go to others.
    drain_timeout: seconds that events which have begun may take to finish at a stop.
    max_event_outputs: messages that one event may send.
    rows_mb: memory in MiB for the rows that a worker keeps at hand as Python objects, of all tables, in front of their
    store.
    remember_ids: seconds (or timedelta) for which agents know the ids of `send(id=…)`, so that of messages with the
    same one they handle the first; 0: they do not.
    worker_id: a name of this worker that its restarts share, and no other worker has: what it owned is kept for it for
    a lease, so that a quick restart moves nothing. zone: where it runs (a rack, a data centre): standbys of a task lie
    in other zones than its owner. Both are usually given by `--worker-id`, `--zone` or THALWEG_WORKER_ID, THALWEG_ZONE.
    assignor: shares tasks out among workers, as `thalweg.assignment.Assignor` says: a function or a dotted path to one.
    secret: signs what the app says in headers (ids, addresses for answers), so that others who may write to its topics
    cannot say it: 16 characters or more, the same for all workers and clients; better given by THALWEG_SECRET. Several,
    separated by blanks: the first signs, all are believed, so that one can take the place of another.
    include: modules and packages to import when the app starts. lifespan: an async context manager around its run,
    called with the app, as Starlette has it.
    """

    def __init__(
        self,
        id: str,
        *,
        broker: str | Transport = "memory://",
        store: str | Stores = "memory://",
        mirror: str | Mirrors | None = None,
        partitions: int = 8,
        guarantee: Guarantee = "auto",
        commit_interval: float | timedelta = 0.1,
        lease: float | timedelta = 10.0,
        drain_timeout: float | timedelta = 30.0,
        max_event_outputs: int = 10_000,
        rows_mb: int = 256,
        remember_ids: float | timedelta = 86_400.0,
        include: Sequence[str] = (),
        lifespan: Callable[[App], AbstractAsyncContextManager[Any]] | None = None,
        env_prefix: str = "THALWEG",
        worker_id: str | None = None,
        zone: str | None = None,
        assignor: Assignor | str | None = None,
        secret: str | None = None,
    ) -> None:
        if not id or not all(c.isalnum() or c in "._-" for c in id):
            raise ConfigurationError(f"app id {id!r}: expected letters, digits, '.', '_' and '-'")
        if guarantee not in ("auto", "exactly_once", "at_least_once"):
            raise ConfigurationError(f"guarantee={guarantee!r}; expected 'auto', 'exactly_once' or 'at_least_once'")
        if not isinstance(partitions, int) or partitions < 1:
            raise ConfigurationError(f"partitions={partitions!r}; expected a whole number, 1 or more")
        self.id = id
        signer_of(secret)  # refuses one that is too short now, not at the start
        self.default_partitions = partitions
        self.wanted_guarantee: Guarantee = guarantee
        self.commit_interval = seconds(commit_interval, "commit_interval")
        self.lease = seconds(lease, "lease")
        self.drain_timeout = seconds(drain_timeout, "drain_timeout")
        self.max_event_outputs = max_event_outputs
        if rows_mb < 1:
            raise ConfigurationError(f"rows_mb={rows_mb}; expected 1 or more (MiB)")
        self.rows_mb = rows_mb
        self.remember_ids = seconds(remember_ids, "remember_ids")
        self.lifespan = lifespan
        self.clock: Clock = RealClock()
        self.env_prefix = env_prefix
        self._broker, self._store, self._worker_id, self._zone = broker, store, worker_id, zone or ""
        self._secret = secret
        self.assignor = load_assignor(assignor)
        self.mirror = mirror
        self._include = tuple(include)
        self._running: Running | None = None
        self.last_transport: Transport | None = None
        self._threads: ThreadPoolExecutor | None = None
        self.thread_calls = 0
        self.topics: dict[str, TopicPlan] = {}
        self._declared: dict[str, tuple[Any, Any]] = {}
        self._checks: dict[str, tuple[type | None, Callable[[object], None]]] = {}
        self._shared: list[tuple[TopicPlan, TopicPlan]] = []
        self.agents: dict[str, Agent[Any, Any]] = {}
        self.tables: dict[str, TablePlan] = {}
        self.table_like: dict[str, TopicPlan | int | None] = {}
        self.replicas: list[Replica[Any, Any]] = []
        self.timers: list[Timer] = []
        self.crontabs: list[Crontab] = []
        self.backgrounds: list[Background] = []
        self.exclusives: list[str] = []
        self.delays: TopicPlan | None = None  # where delayed messages wait, once the broker has been met

    # --- settings ----------------------------------------------------------------------------------------------

    broker = FromEnvironment["str | Transport"]()
    store = FromEnvironment["str | Stores"]()
    worker_id = FromEnvironment["str | None"]()
    zone = FromEnvironment[str]()
    secret = FromEnvironment["str | None"]()

    def now(self) -> float:
        """Seconds since the epoch, by the clock that rules this app (in tests: virtual)."""
        return self.clock.now()

    async def sleep(self, seconds: float) -> None:
        """Sleep by the clock that rules this app, so that tests need not wait."""
        await self.clock.sleep(seconds)

    def load(self) -> None:
        """Import what `include` names: modules, and packages with all their modules."""
        for name in self._include:
            module = importlib.import_module(name)
            for path in getattr(module, "__path__", ()):
                for found in pkgutil.walk_packages([path], f"{name}."):
                    importlib.import_module(found.name)

    # --- topics and queues -------------------------------------------------------------------------------------

    @overload
    def topic(
        self,
        name: str,
        *,
        value: TypeForm[V] = ...,
        codec: str | Codec[V] | None = ...,
        partitions: int | None = ...,
        start: Start = ...,
        retention: float | timedelta | None = ...,
        compact: bool = ...,
        partitioner: str = ...,
        key_of: Callable[[V], str | None] | None = ...,
        timestamp_of: Callable[[V], float | datetime] | None = ...,
        options: Mapping[str, str] | None = ...,
        declare: bool = ...,
    ) -> Topic[str, V]: ...
    @overload
    def topic(
        self,
        name: str,
        *,
        key: TypeForm[K],
        value: TypeForm[V] = ...,
        codec: str | Codec[V] | None = ...,
        partitions: int | None = ...,
        start: Start = ...,
        retention: float | timedelta | None = ...,
        compact: bool = ...,
        partitioner: str = ...,
        key_of: Callable[[V], K | None] | None = ...,
        timestamp_of: Callable[[V], float | datetime] | None = ...,
        options: Mapping[str, str] | None = ...,
        declare: bool = ...,
    ) -> Topic[K, V]: ...
    def topic(
        self,
        name: str,
        *,
        key: Any = str,
        value: Any = bytes,
        codec: str | Codec[Any] | None = None,
        partitions: int | None = None,
        start: Start = "earliest",
        retention: float | timedelta | None = None,
        compact: bool = False,
        partitioner: str = "murmur2",
        key_of: Callable[[Any], Any] | None = None,
        timestamp_of: Callable[[Any], float | datetime] | None = None,
        options: Mapping[str, str] | None = None,
        declare: bool = True,
    ) -> Topic[Any, Any]:
        """Declare a topic: a log of partitions. Declaring it again with the same types gives the same topic, with
        others is an error.

        key, value: types (a Struct, dataclass, TypedDict, pydantic model, union, plain type); the codec follows them,
        or is "json", "msgpack", "raw" or an object with `encode` and `decode`.
        partitions: of a topic that must be created; one that exists keeps its own, and None takes it as it is.
        start: where an agent that has no position yet begins. retention: seconds. key_of: makes `key=` unnecessary on
        sends. timestamp_of: event time, in seconds since the epoch or as datetime.
        options: settings of the broker's own, by its names for them. declare: False where the topic is another
        program's: it must exist (else BrokerError at the start), and is used as it is.
        """
        if start not in ("earliest", "latest") and not isinstance(start, datetime):
            raise ConfigurationError(f"topic {name!r}: start={start!r}; expected 'earliest', 'latest' or a datetime")
        spec = TopicSpec(
            name,
            partitions,
            self.default_partitions,
            None if retention is None else seconds(retention, "retention"),
            compact,
            False,
            dict(options or {}),
            declare,
        )
        begin = start.timestamp() if isinstance(start, datetime) else start
        plan = self._declare(spec, key, value, codec, partitioner, begin, key_of, timestamp_of)
        return Topic(self, plan, self._checks[name])

    @overload
    def queue(
        self,
        name: str,
        *,
        value: TypeForm[V] = ...,
        codec: str | Codec[V] | None = ...,
        retention: float | timedelta | None = ...,
        key_of: Callable[[V], str | None] | None = ...,
        options: Mapping[str, str] | None = ...,
        declare: bool = ...,
    ) -> Queue[str, V]: ...
    @overload
    def queue(
        self,
        name: str,
        *,
        key: TypeForm[K],
        value: TypeForm[V] = ...,
        codec: str | Codec[V] | None = ...,
        retention: float | timedelta | None = ...,
        key_of: Callable[[V], K | None] | None = ...,
        options: Mapping[str, str] | None = ...,
        declare: bool = ...,
    ) -> Queue[K, V]: ...
    def queue(
        self,
        name: str,
        *,
        key: Any = str,
        value: Any = bytes,
        codec: str | Codec[Any] | None = None,
        retention: float | timedelta | None = None,
        key_of: Callable[[Any], Any] | None = None,
        options: Mapping[str, str] | None = None,
        declare: bool = True,
    ) -> Queue[Any, Any]:
        """Declare a work queue: competing consumers, individual acknowledgement, at least once.

        retention: seconds. The others as for `topic`: `queue("jobs", declare=False)` is a queue that exists.
        """
        keep = None if retention is None else seconds(retention, "retention")
        spec = TopicSpec(name, 1, 1, keep, False, True, dict(options or {}), declare, lease=self.lease)
        return Queue(
            self, self._declare(spec, key, value, codec, "murmur2", "earliest", key_of, None), self._checks[name]
        )

    def _declare(
        self,
        spec: TopicSpec,
        key: Any,
        value: Any,
        codec: Any,
        partitioner: str,
        start: Any,
        key_of: Callable[[Any], Any] | None,
        timestamp_of: Callable[[Any], Any] | None,
    ) -> TopicPlan:
        types = (key, value)
        known = self.topics.get(spec.name)
        if known is not None:
            if self._declared[spec.name] != types or known.spec.queue != spec.queue:
                was_key, was_value = self._declared[spec.name]
                now, was = ("queue" if one.queue else "topic" for one in (spec, known.spec))
                raise ConfigurationError(
                    f"{now} {spec.name!r} was declared before as a {was} with key={inspect.formatannotation(was_key)}, "
                    f"value={inspect.formatannotation(was_value)}; now as a {now} with "
                    f"key={inspect.formatannotation(key)}, value={inspect.formatannotation(value)}. Use one object, or "
                    "`.raw` for its bytes"
                )
            return known
        self._refuse_when_running(f"topic {spec.name!r}")
        if not isinstance(spec.name, str) or not spec.name:
            raise ConfigurationError(f"{'queue' if spec.queue else 'topic'} {spec.name!r}: expected a name")
        extract = None if timestamp_of is None else _as_seconds(timestamp_of)
        plan = TopicPlan(
            spec,
            key_codec_for(key),
            codec_for(value, codec),
            partitioner_for(partitioner),
            partitioner,
            start,
            key_of,
            extract,
        )
        self.topics[spec.name] = plan
        self._declared[spec.name] = types
        self._checks[spec.name] = checker_for(value, codec)
        return plan

    def source(self, name: str) -> Topic[Any, Any] | Queue[Any, Any]:
        """The topic or queue declared under this name; else ConfigurationError, listing those there are."""
        plan = self.topics.get(name)
        if plan is None:
            known = ", ".join(sorted(self.topics)) or "none"
            raise ConfigurationError(f"app {self.id!r} declares no topic or queue {name!r}; it has: {known}")
        return (Queue if plan.spec.queue else Topic)(self, plan, self._checks[name])

    def question(self, plan: TopicPlan, value: Any, key: Any, headers: Headers) -> tuple[TopicPlan, int, Message]:
        """A message with headers of ours for the topic that an agent reads."""
        return Topic(self, plan, self._checks[plan.name]).question(value, key, headers)

    def share_partitions(self, plan: TopicPlan, of: TopicPlan) -> TopicPlan:
        """`plan` is another view of the same topic: it gets its partition count at start-up too."""
        self._shared.append((plan, of))
        return plan

    def resolve_partitions(self) -> None:
        for plan, of in self._shared:
            plan.partitions = of.partitions

    def repartition_topic(
        self, name: str, sources: Sequence[SourcePlan], *, key: Any, value: Any, partitions: int | None
    ) -> TopicPlan:
        """The internal topic behind `group_by` and `repartition`."""
        first = sources[0].topic
        changed = any(not _keeps_type(source) for source in sources)
        if changed and value is None:
            value = Any
        full = f"{self.id}-{name}-repartition"
        if full in self.topics:
            raise ConfigurationError(f"name={name!r} is taken by another group_by() or repartition() of this app")
        spec = TopicSpec(full, partitions, self.default_partitions)
        plan = TopicPlan(
            spec,
            first.key if key is None else key_codec_for(key),
            first.value if value is None else codec_for(value),
            partitioner_for("murmur2"),
            "murmur2",
            timestamp_of=None,
        )
        self.topics[full] = plan
        self._checks[full] = checker_for(Any) if value is None else checker_for(value)
        self._declared[full] = (key, value)
        return plan

    # --- agents and handlers -----------------------------------------------------------------------------------

    def agent(
        self,
        source: Source[T],
        *,
        name: str | None = None,
        concurrency: int = 1,
        sinks: Sequence[Sink] = (),
        on_error: Policy = DEFAULT_POLICY,
    ) -> AgentDecorator[T]:
        """An async function over a stream becomes an agent: one instance per partition, or `concurrency` of them.

        source: a topic, a queue, a stream, or a list of topics of one type. An event is finished, and joins the next
        commit, when the agent asks for the next one. What it yields is the answer to `ask`, and goes to `sinks`:
        topics, queues, agents or async functions. An exception undoes the event and meets `on_error`; default: five
        attempts, then the dead letter.
        """
        stream = self._stream_of(source)

        def decorate(function: Callable[[Stream[T]], Any]) -> Agent[T, Any]:
            check_function(f"agent {function.__name__!r}", function, "stream")
            check_takes_stream(function)
            return self._add_agent(function, function, stream, name, concurrency, sinks, on_error)

        return decorate

    def handler(
        self,
        source: Source[T],
        *,
        name: str | None = None,
        concurrency: int = 1,
        timeout: float | timedelta | None = None,
        sinks: Sequence[Sink] = (),
        on_error: Policy = DEFAULT_POLICY,
    ) -> HandlerDecorator[T]:
        """A function called once a message becomes an agent; a `def` one runs in a thread, where it may block.

        What it returns is the answer to `ask`, and goes to `sinks`. concurrency: calls at once in each partition.
        timeout: seconds for a call; beyond, it is cancelled and has failed. It may raise RetryLater(seconds) or
        Reject(reason) to decide for itself.
        """
        stream = self._stream_of(source)
        limit = None if timeout is None else seconds(timeout, "timeout")

        def decorate(function: Callable[[T], Any]) -> Agent[T, Any]:
            check_function(f"handler {function.__name__!r}", function, "value", may_block=True)
            body = handler_body(self, function, limit)
            return self._add_agent(function, body, stream, name, concurrency, sinks, on_error)

        return decorate

    def _add_agent(
        self,
        function: Callable[..., Any],
        body: Callable[[Stream[Any]], Any],
        stream: Stream[Any],
        name: str | None,
        concurrency: int,
        sinks: Sequence[Sink],
        policy: Policy,
    ) -> Agent[Any, Any]:
        name = name or function.__name__
        self._refuse_when_running(f"agent {name!r}")
        if name in self.agents:
            raise ConfigurationError(f"agent {name!r} is declared twice; give one of them another `name=`")
        agent: Agent[Any, Any] = Agent(
            self, function, body, stream, name=name, concurrency=concurrency, sinks=sinks, policy=policy
        )
        agent.plan.answer = answer_codec(function)
        self.agents[name] = agent
        return agent

    def _stream_of(self, source: Any) -> Stream[Any]:
        if isinstance(source, Stream):
            return source
        if isinstance(source, Topic | Queue):
            return source.stream()
        if isinstance(source, Sequence) and source and all(isinstance(topic, Topic | Queue) for topic in source):
            streams: list[Stream[Any]] = [topic.stream() for topic in source]
            return streams[0].merge(*streams[1:])
        if inspect.isfunction(source):
            raise ConfigurationError(f"{source.__name__!r} has no source; write `@app.agent(topic)`, not `@app.agent`")
        raise ConfigurationError(f"source {source!r}: expected a topic, a queue, a stream or a list of topics")

    def forward(self, name: str, stream: Stream[Any], topic: TopicPlan, key_of: Callable[[Any], Any] | None) -> None:
        """An internal agent that sends a stream's events on to `topic`, under a new key if `key_of`."""
        from .forward import forwarder

        keeps_bytes = all(_keeps_type(source) for source in stream.sources)
        body = forwarder(self, topic, key_of, keeps_bytes)
        self._add_agent(body, body, stream.events(), name, 1, (), DEFAULT_POLICY)

    def forward_to(self, stream: Stream[Any], target: Topic[Any, Any] | Queue[Any, Any]) -> None:
        """The internal agent behind `stream.to(topic)`."""
        from .forward import sending_to

        body = sending_to(target)
        number = sum(name.startswith(f"to-{target.name}") for name in self.agents)
        self._add_agent(
            body, body, stream, f"to-{target.name}" + (f"-{number}" if number else ""), 1, (), DEFAULT_POLICY
        )

    # --- tables ------------------------------------------------------------------------------------------------

    def table(
        self,
        name: str,
        *,
        key: TypeForm[K] = str,  # type: ignore[assignment] # K is str then, by its own default
        value: TypeForm[V],
        default: Callable[[], V] | None = None,
        like: Topic[Any, Any] | None = None,
        partitions: int | None = None,
        codec: str | Codec[V] | None = None,
        mirror: str | Mirrors | Literal[False] | None = None,
        standbys: int = 0,
        ttl: float | timedelta | None = None,
        upgrades: Sequence[Upgrade] = (),
    ) -> Table[K, V]:
        """Declare a table: a dict that events change and commits keep, in the partitions of the events.

        like: the topic whose events change it (default: partitioned as topics that the app creates).
        default: called for each missing key that is read, as collections.defaultdict does.
        mirror: where other programs read what it holds (default: the app's; False: nowhere).
        standbys: how many other workers follow the journal, to take over at once when the owner dies.
        ttl: seconds after which a row that was not written again is deleted, by the worker's clock; up to a sixteenth
        later, and at a commit. (A mutable value is written when it has changed.)
        upgrades: pairs (OldType, function), oldest first, for rows that were written when `value` was another type:
        what does not decode as `value` is decoded as the newest of them that fits and handed from function to function.
        A row is written in its new form when an event changes it.
        """
        plan, codec_of_key = self._table_plan(name, key, value, default, codec, upgrades)
        if mirror is not None:
            plan.mirror = mirror or None
        if standbys < 0:
            raise ConfigurationError(f"table {name!r}: standbys={standbys}: expected 0 or more")
        plan.standbys = standbys
        if ttl is not None:
            plan.ttl = seconds(ttl, "ttl")
            if plan.ttl <= 0:
                raise ConfigurationError(f"table {name!r}: ttl={ttl!r}: expected more than 0 seconds")
        self.table_like[name] = like._plan if like is not None else partitions
        return Table(self, plan, codec_of_key, checker_for(value, codec))

    def _table_plan(
        self,
        name: str,
        key: Any,
        value: Any,
        default: Callable[[], Any] | None,
        codec: Any,
        upgrades: Sequence[Upgrade] = (),
    ) -> Any:
        self._refuse_when_running(f"table {name!r}")
        if name in self.tables:
            raise ConfigurationError(f"table {name!r} is declared twice; use one object")
        if default is not None and not callable(default):
            raise ConfigurationError(
                f"table {name!r}: default={default!r} is not callable; write default=lambda: {default!r}"
            )
        key_codec, value_codec = key_codec_for(key), with_upgrades(name, codec_for(value, codec), upgrades, codec)
        plan = TablePlan(
            name=name,
            group="",
            partitions=0,
            encode_key=key_codec.encode,
            decode_key=key_codec.decode,
            encode=value_codec.encode,
            decode=value_codec.decode,
            default=default,
            mutable=not is_immutable(value),
            verify=value not in (int, str, bytes, bool, float),
            partition_of=partitioner_for("murmur2"),
            key_form=key_codec.form,
            value_form=value_codec.form,
            mirror=self.mirror,
        )
        self.tables[name] = plan
        return plan, key_codec

    def declare_table_of(self, topic: Topic[K, V], name: str) -> Table[K, V]:
        """A read-only table of a topic's types and partitions, kept by an internal agent."""
        key, value = self._declared[topic.name]
        plan, codec_of_key = self._table_plan(name, key, value, None, None)
        plan.partition_of = topic._plan.partition_of
        plan.encode_key, plan.decode_key = topic._plan.key.encode, topic._plan.key.decode
        plan.encode, plan.decode = topic._plan.value.encode, topic._plan.value.decode
        plan.key_form, plan.value_form = topic._plan.key.form, topic._plan.value.form
        self.table_like[name] = topic._plan
        return Table(self, plan, codec_of_key, checker_for(value), read_only=True)

    def replica_plan(self, topic: Topic[K, V], name: str) -> tuple[TablePlan, TypeCodec[Any]]:
        """As above, for a table that is on every worker and has no journal."""
        self.declare_table_of(topic, name)
        plan = self.tables.pop(name)
        del self.table_like[name]
        return plan, topic._plan.key

    def add_internal_agent(self, function: Callable[[Stream[Any]], Any], stream: Stream[Any], name: str) -> None:
        self._add_agent(function, function, stream, name, 1, (), DEFAULT_POLICY)

    def topic_table(self, topic: Topic[K, V], name: str, replicated: bool) -> Table[K, V]:
        from .topic_table import add_topic_table

        return add_topic_table(self, topic, name, replicated)

    def changes_of(self, table: Table[K, V]) -> Stream[Change[K, V]]:
        """See `Table.changes`."""
        plan = table.plan
        if plan.changes is None:
            if self.tables.get(plan.name) is not plan:
                raise ConfigurationError(
                    f"table {plan.name!r} is replicated and has no journal of its own; read its topic's stream"
                )
            name = changes_topic(self.id, plan.name)
            self._refuse_when_running(f"changes() of table {plan.name!r}")
            if name in self.topics:
                raise ConfigurationError(f"topic {name!r} is declared by the program; changes() needs that name")
            key = TypeCodec(plan.encode_key, plan.decode_key, "key", "", plan.key_form)
            spec = TopicSpec(name, None, self.default_partitions)
            self.topics[name] = TopicPlan(spec, key, change_codec(plan), plan.partition_of, "murmur2")
            self._checks[name] = checker_for(Any)
            self._declared[name] = (key, Change)
            plan.changes = name
        return Stream.of(self, self.topics[plan.changes])

    # --- by the clock --------------------------------------------------------------------------------------------

    def timer(
        self, interval: float | timedelta, *, on_leader: bool = False, name: str | None = None
    ) -> Callable[[F], F]:
        """Call an async function every `interval` seconds, first after one interval; on every worker, or the leader.

        on_leader: the rhythm is remembered in the journal and goes on when another worker leads; what a run sends is
        sent when it has ended well, once, in one commit with its tick.
        """
        every = seconds(interval, "timer(interval)")
        if every <= 0:
            raise ConfigurationError(f"timer({interval!r}): expected more than 0 seconds")

        def decorate(function: F) -> F:
            check_function(f"timer {name or function.__name__!r}", function)
            timer = Timer(name or function.__name__, function, every, on_leader)
            _check_name(timer, self.timers)
            self.timers.append(timer)
            return function

        return decorate

    def crontab(
        self,
        expression: str,
        *,
        timezone: str = "UTC",
        on_leader: bool = False,
        misfire: Misfire = "run_once",
        name: str | None = None,
    ) -> Callable[[F], F]:
        """Call an async function at the times of a cron expression.

        on_leader: once across all workers, remembered in the journal; runs missed while no worker was up are made up
        for by one run (`misfire="run_once"`) or, after a minute, not (`"skip"`). What a run sends is sent when it has
        ended well, once, in one commit with its tick. Otherwise on every worker that is up at the time.
        """

        def decorate(function: F) -> F:
            check_function(f"crontab {name or function.__name__!r}", function)
            crontab = Crontab(name or function.__name__, function, expression, timezone, on_leader, misfire)
            _check_name(crontab, self.crontabs)
            self.crontabs.append(crontab)
            return function

        return decorate

    @overload
    def background(self, function: F, /) -> F: ...
    @overload
    def background(self, /, *, on_leader: bool = ..., name: str | None = ...) -> Callable[[F], F]: ...
    def background(
        self, function: F | None = None, /, *, on_leader: bool = False, name: str | None = None
    ) -> F | Callable[[F], F]:
        """Run an async function beside the agents from the start; with `on_leader` on one worker at a time."""

        def decorate(function: F) -> F:
            check_function(f"background function {name or function.__name__!r}", function)
            self.backgrounds.append(Background(name or function.__name__, function, on_leader))
            return function

        return decorate if function is None else decorate(function)

    # --- mutual exclusion ------------------------------------------------------------------------------------------

    def lock(self, name: str, *, timeout: float | timedelta | None = None) -> AbstractAsyncContextManager[HeldLock]:
        """`async with app.lock(name) as held:` one block of this name at a time, across all workers and clients.

        timeout: seconds to wait for it (None: for ever, 0: not at all); TimeoutError if it was not to be had.
        A holder that dies or stands still loses it within `lease` seconds. If that happens to this one, its block is
        cancelled where it waits and LockLost raised. `held.number` is larger for each new holder: give it to what the
        block writes to, so that it can refuse an old one. Raises MissingCapability where the broker has no locks.
        """
        return locked(self, name, timeout)

    @overload
    def exclusive(
        self, name: str, *, wait: Literal[True] = ...
    ) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Callable[P, Coroutine[Any, Any, R]]]: ...
    @overload
    def exclusive(
        self, name: str, *, wait: bool
    ) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Callable[P, Coroutine[Any, Any, R | None]]]: ...
    def exclusive(self, name: str, *, wait: bool = True) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """An async function runs under the lock of this name (`lock`), so once at a time across all workers.

        wait: a call waits for its turn; False: while another runs, it is left out, and gives None.
        Stands below `@app.timer` and the like: `@app.timer(60)`, then `@app.exclusive("report", wait=False)`.
        """

        def decorate(function: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
            alone = exclusively(self, name, function, wait)
            self.exclusives.append(name)
            return alone

        return decorate

    # --- running -------------------------------------------------------------------------------------------------

    @property
    def running(self) -> Running:
        if self._running is None:
            raise NotRunning(
                f"app {self.id!r} is not running: use `async with app:`, `async with app.client():`, "
                "`async with app.test():` or `app.main()`"
            )
        return self._running

    @property
    def is_running(self) -> bool:
        return self._running is not None

    def set_running(self, running: Running | None) -> None:
        self._running = running

    def _refuse_when_running(self, what: str) -> None:
        if self._running is not None:
            raise ConfigurationError(f"{what} is declared while app {self.id!r} runs; declare it before the start")

    @property
    def threads(self) -> ThreadPoolExecutor:
        """Where `def` handlers run."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(thread_name_prefix=f"thalweg-{self.id}")
        return self._threads

    def close_threads(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None

    @contextmanager
    def thread_running(self) -> Iterator[None]:
        self.thread_calls += 1
        try:
            yield
        finally:
            self.thread_calls -= 1

    _started: AbstractAsyncContextManager[Any] | None = None

    async def __aenter__(self) -> App:
        """The whole worker, in this event loop, until the block ends."""
        from .starting import worker_running

        if self._started is not None:
            raise ConfigurationError(f"app {self.id!r} runs already")
        self._started = worker_running(self)
        try:
            await self._started.__aenter__()
        except BaseException:
            self._started = None
            raise
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        started, self._started = self._started, None
        assert started is not None
        await started.__aexit__(*exc_info)

    def client(self) -> AbstractAsyncContextManager[App]:
        """`async with app.client():` only sends and asks; the agents run in workers elsewhere."""
        from .starting import client_running

        return client_running(self)

    def portal(self) -> Portal:
        """`with app.portal() as portal:`, for programs without an event loop (Flask, Django, scripts).

        A client in a thread of its own; or the app itself, where it runs already.
        """
        from .portal import Portal

        return Portal(self)

    def test(
        self,
        *,
        start: datetime | float | None = None,
        errors: Literal["raise", "policy"] = "raise",
        broker: str = "memory://",
    ) -> AppTest:
        """The real runtime on a `memory://` broker of its own, under a virtual clock. See `thalweg.testing`.

        start: what the clock shows first (default: 2020-01-01T00:00:00Z). errors: "raise" has an agent's exception
        fail the test, "policy" leaves it to the agent's policy. broker: options switch capabilities off, to test as on
        a lesser broker: "memory://?fencing=false".
        """
        from .testing import AppTest

        return AppTest(self, start=start, errors=errors, broker=broker)

    async def serve(self) -> None:
        """Run as a worker until SIGINT or SIGTERM, then drain and stop."""
        from .serving import serve

        await serve(self)

    def main(self) -> None:
        """The command line for this app: `python program.py worker`."""
        from .cli import main

        main(self)

    def dead_letters(self, source: Topic[Any, Any] | Queue[Any, Any]) -> AsyncIterator[DeadLetterRecord]:
        """`async for letter in app.dead_letters(topic)`: what failed there, up to now, oldest first.

        See `DeadLetterRecord` for what a letter has.
        """
        from .dead_letters import read_dead_letters

        return read_dead_letters(self, source.name)

    @property
    def guarantee(self) -> str:
        """What this app really gives on its broker: "exactly_once" or "at_least_once". Known once it runs."""
        return self.running.guarantee

    @property
    def is_leader(self) -> bool:
        """Whether what is declared with `on_leader=True` runs on this worker now."""
        return self.running.is_leader

    def __repr__(self) -> str:
        return f"App({self.id!r})"


def _check_name(part: Timer | Crontab, others: Sequence[Timer | Crontab]) -> None:
    """What runs on the leader is remembered by its name."""
    if part.on_leader and any(other.on_leader and other.name == part.name for other in others):
        raise ConfigurationError(f"{part.what} with on_leader=True is declared twice; give one of them another `name=`")


def _as_seconds(function: Callable[[Any], Any]) -> Callable[[Any], float]:
    def extract(value: Any) -> float:
        found = function(value)
        return found.timestamp() if isinstance(found, datetime) else float(found)

    return extract


def _keeps_type(source: SourcePlan) -> bool:
    """Whether the values that come out are those that lie in the topic, byte for byte."""
    from .ops import Filter

    return all(isinstance(op, Filter) for op in source.ops)
