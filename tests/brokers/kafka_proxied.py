"""A transport whose every connection goes where its URL says: to a proxy before the one broker of the cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from thalweg.transports.kafka import KafkaTransport
from thalweg.transports.kafka.connection import Cluster

__all__ = ["ProxiedTransport"]


class ProxiedCluster(Cluster):
    """Brokers tell their clients their own addresses: these do not listen."""

    async def metadata(self, topics: Sequence[str] | None) -> Mapping[str, Any]:
        found = await super().metadata(topics)
        self.brokers = dict.fromkeys(self.brokers, self.endpoint.addresses[0])
        return found


class ProxiedTransport(KafkaTransport):
    cluster_type = ProxiedCluster
