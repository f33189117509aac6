"""``esper exporter``."""

import os
from functools import partial

from esper.cli.ending import until_told
from esper.observability.metrics.over_bus import Runs
from esper.observability.metrics.prometheus import MetricsServer
from esper.oona.environment import codec
from esper.oona.url import open_bus, shown


def export(url: str, port: int, host: str) -> None:
    """Serve the metrics of all runs on a bus, until interrupted or terminated.

    Raises:
        BusError: if there is no such bus, or its broker does not answer at the start.
        ConfigError: if the port is taken, or prometheus-client is not installed.
    """
    open_bus(url).close()
    runs = Runs(partial(open_bus, url), codec(os.environ), tell=lambda text: print(text, flush=True))
    server = MetricsServer(runs.samples, port, host)
    try:
        with until_told() as ending:
            where = f"http://{host}:{server.port}/metrics"
            print(f"the runs on {shown(url)} are at {where}; stop it with Ctrl-C", flush=True)
            runs.follow(ending)
    finally:
        server.close()
