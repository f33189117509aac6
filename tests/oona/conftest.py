"""Real brokers."""

from tests.brokers import kafka_url, nats_url, redis_url

__all__ = ["kafka_url", "nats_url", "redis_url"]
