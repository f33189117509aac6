"""Sends nested states from process to process: JSON, and tensors as plain bytes.

A tensor of a device comes to the device of the receiver. What lies on disk is sent from there.
"""

import json
import os
import socket
import time
import weakref
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from esper.checkpoint.digests import raw_bytes
from esper.checkpoint.packed import Packed
from esper.checkpoint.tree import flatten, unflatten

LOST = (EOFError, OSError)
"""What a connection raises when the other end is gone."""


class Parcel(NamedTuple):
    """A message, ready to be sent; what was in it may change from now on, but for its tensors.

    Attributes:
        text: JSON, with the name of each part in its place.
        tensors: in their order there.
        packed: states on disk, likewise.
    """

    text: bytes
    tensors: list[Tensor]
    packed: list[Packed]

    @classmethod
    def of(cls, message: Any) -> Self:
        """Take a message apart, a nested state as checkpoints hold them.

        Raises:
            CheckpointError: if it holds what they cannot.
        """
        packed: dict[str, Packed] = {}
        structure, tensors = flatten(message, packed)
        forms = {name: [str(one.dtype).removeprefix("torch."), list(one.shape)] for name, one in tensors.items()}
        text = json.dumps({"structure": structure, "tensors": forms, "packed": list(packed)})
        return cls(text.encode(), list(tensors.values()), list(packed.values()))

    def send(self, connection: Connection) -> None:
        """Send it; waits for devices and for the other end."""
        connection.send_bytes(self.text)
        for tensor in self.tensors:
            if tensor.numel():
                connection.send_bytes(raw_bytes(tensor).data)
        for part in self.packed:
            Parcel.of(part.read()).send(connection)


def received(connection: Connection, device: torch.device) -> Any:
    """The next message.

    Args:
        connection: to the other end.
        device: where tensors come that were not on the host.

    Raises:
        EOFError, OSError: if the other end is gone.
    """
    told = json.loads(connection.recv_bytes())
    tensors = {
        name: torch.empty(shape, dtype=getattr(torch, dtype)) for name, (dtype, shape) in told["tensors"].items()
    }
    for tensor in tensors.values():
        if tensor.numel():
            connection.recv_bytes_into(raw_bytes(tensor).data)
    packed = {name: received(connection, device) for name in told["packed"]}
    return unflatten(told["structure"], tensors, packed, device)


class Line:
    """A connection on which nobody waits: threads send and receive.

    Args:
        connection: to the other end.
        device: where tensors come that were not on the host.
        timeout: seconds after which the other end is called silent.
    """

    def __init__(self, connection: Connection, device: torch.device, timeout: float) -> None:
        self._connection, self._timeout = connection, timeout
        self._outgoing: SimpleQueue[Parcel | None] = SimpleQueue()
        self._incoming: SimpleQueue[Any] = SimpleQueue()
        self.listen()
        self._sender = Thread(target=_send_all, args=(connection, self._outgoing), daemon=True)
        self._sender.start()
        Thread(target=_receive_all, args=(connection, device, self._incoming), daemon=True).start()
        weakref.finalize(self, self._outgoing.put, None)  # where nobody closes it the other end is told nevertheless

    @property
    def is_silent(self) -> bool:
        """Whether nothing was heard for too long."""
        return time.monotonic() - self._heard > self._timeout

    def listen(self) -> None:
        """From now on the other end is expected to be heard."""
        self._heard = time.monotonic()

    def send(self, parcel: Parcel) -> None:
        """Let a message be sent."""
        self._outgoing.put(parcel)

    def next(self, timeout: float | None) -> Any:
        """The next message; :class:`Gone` once the other end is.

        Raises:
            queue.Empty: if there is none after so many seconds.
        """
        message = self._incoming.get(timeout=timeout) if timeout != 0 else self._incoming.get_nowait()
        self.listen()
        return message

    def close(self) -> None:
        """Send what is still to be sent, as far as the other end takes it in time, and end."""
        self._outgoing.put(None)
        self._sender.join(self._timeout)
        self._connection.close()


class Gone:
    """The other end of a line is no more."""


def _send_all(connection: Connection, outgoing: "SimpleQueue[Parcel | None]") -> None:
    try:
        while (parcel := outgoing.get()) is not None:
            parcel.send(connection)
        with socket.socket(fileno=os.dup(connection.fileno())) as end:
            end.shutdown(socket.SHUT_WR)
    except LOST:  # the receiving thread tells
        return


def _receive_all(connection: Connection, device: torch.device, incoming: "SimpleQueue[Any]") -> None:
    while True:
        try:
            incoming.put(received(connection, device))
        except LOST:
            incoming.put(Gone())
            return
