"""``esper tamiyo serve``."""

import os
import secrets

from esper.cli.ending import until_told
from esper.contracts.config import GrowthConfig
from esper.oona.environment import codec
from esper.oona.url import open_bus, shown
from esper.tamiyo.policies import make_policy
from esper.tamiyo.serving import Controller


def serve(url: str, policy: str) -> None:
    """Decide for all runs on a bus that ask, until interrupted or terminated.

    Raises:
        BusError: if there is no such bus, or its broker does not answer at the start.
        ConfigError: if there is no such policy.
    """
    make_policy(policy, GrowthConfig())
    bus = open_bus(url)
    try:
        with until_told() as ending:
            print(f"{policy} decides for the runs on {shown(url)}; stop it with Ctrl-C", flush=True)
            consumer = f"tamiyo-{os.getpid()}-{secrets.token_hex(3)}"
            Controller(bus, codec(os.environ), policy, consumer, tell=lambda text: print(text, flush=True)).serve(
                ending
            )
    finally:
        bus.close()
