"""Servers for the tests of what is deployed."""

from tests.brokers import redis_url

__all__ = ["redis_url"]
