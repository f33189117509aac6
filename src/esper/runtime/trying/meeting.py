"""How a run and the ranks that run its arms come together."""

import os
import secrets
from concurrent.futures import Future
from dataclasses import asdict
from multiprocessing.connection import Client, Connection, Listener
from threading import Thread

from esper.contracts.errors import RankError
from esper.runtime.run import Run
from esper.runtime.training.ranks import Ranks
from esper.runtime.trying.parcels import Line, Parcel


def lines(ranks: Ranks, run: Run, timeout: float) -> list[Line]:
    """Lines from rank 0 to all others, by their order; on another rank, the one to rank 0.

    Args:
        ranks: all of them.
        run: of this rank.
        timeout: seconds for which each waits.

    Raises:
        RankError: if the ranks were not given the same, or one does not come.
        CheckpointError: if something has a state that cannot be sent.
    """
    given = {
        "planned_steps": run.planned_steps,
        "number of held-out samples": run.judge.num_samples,
        "configuration": asdict(run.config),
        "tensors": {name: tuple(tensor.shape) for name, tensor in run.model.state_dict().items()},
    }
    ranks.check_equal(given, "arguments of Session")
    Parcel.of(run.captures.capture())  # it must be such as can be sent, and now is the time to say so
    device = next(run.model.parameters()).device
    return [Line(one, device, timeout) for one in _connections(ranks, timeout)]


def _connections(ranks: Ranks, timeout: float) -> list[Connection]:
    key = secrets.token_bytes()
    host = os.environ.get("MASTER_ADDR", "127.0.0.1")  # of rank 0, as torchrun tells it
    what = "where arms are told of the run"
    if ranks.rank:
        address, key = ranks.same(("", key), what)
        connection = Client(address, authkey=key)
        connection.send_bytes(str(ranks.rank).encode())
        return [connection]
    listener = Listener((host, 0), authkey=key)
    ranks.same((listener.address, key), what)
    accepted: Future[dict[int, Connection]] = Future()
    Thread(target=_accept, args=(listener, ranks.size - 1, accepted), daemon=True).start()
    try:
        found = accepted.result(timeout)
    except TimeoutError:
        raise RankError(f"A rank that is to run arms has not connected within {timeout:g} s.") from None
    finally:
        listener.close()
    return [found[rank] for rank in sorted(found)]


def _accept(listener: Listener, count: int, accepted: "Future[dict[int, Connection]]") -> None:
    found: dict[int, Connection] = {}
    try:
        for _ in range(count):
            connection = listener.accept()
            found[int(connection.recv_bytes())] = connection
    except OSError as error:  # raised where it is waited for
        accepted.set_exception(error)
    else:
        accepted.set_result(found)
