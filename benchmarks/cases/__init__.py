"""The cases, in the order in which they run. A new one is a file here with a `CASE`, and a line below."""

from . import (
    ask,
    end_to_end,
    handle_passing_on,
    handle_sum,
    kafka,
    kafka_groups,
    latency,
    nats,
    produce,
    rabbitmq,
    rabbitmq_streams,
    redis,
    send,
    sqlite,
)

CASES = (
    handle_sum.CASE,
    handle_passing_on.CASE,
    end_to_end.CASE,
    produce.CASE,
    send.CASE,
    latency.CASE,
    ask.CASE,
    sqlite.CASE,
    *redis.CASES,
    *kafka.CASES,
    *kafka_groups.CASES,
    *rabbitmq.CASES,
    *rabbitmq_streams.CASES,
    *nats.CASES,
)
