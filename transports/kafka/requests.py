"""Requests of the group protocol in versions that know static members (KIP-345), where aiokafka has older ones only.

Their forms are those of Kafka's protocol guide.
"""

from __future__ import annotations

from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Int16, Int32, Schema, String

__all__ = ["FENCED_INSTANCE", "StaticHeartbeat"]

FENCED_INSTANCE = 82
"""Code of an answer, unknown to aiokafka: a newer member has come in under the same group.instance.id."""

_TEXT = String("utf-8")


class _HeartbeatResponse(Response):  # type: ignore[misc]
    API_KEY = 12
    API_VERSION = 3
    SCHEMA = Schema(("throttle_time_ms", Int32), ("error_code", Int16))


class _Heartbeat(RequestStruct):  # type: ignore[misc]
    API_KEY = 12
    API_VERSION = 3
    RESPONSE_TYPE = _HeartbeatResponse
    SCHEMA = Schema(("group", _TEXT), ("generation_id", Int32), ("member_id", _TEXT), ("group_instance_id", _TEXT))


class StaticHeartbeat(Request[_Heartbeat]):  # type: ignore[misc]
    """Like aiokafka's HeartbeatRequest, of a member with a group.instance.id: told so if a newer one took its place."""

    API_KEY = 12

    def __init__(self, group: str, generation: int, member: str, instance: str) -> None:
        self._values = group, generation, member, instance

    def build(self, request_struct_class: type[_Heartbeat]) -> _Heartbeat:
        return request_struct_class(*self._values)
