"""Sends what Python can pickle between processes that trust each other, its tensors as plain bytes.

A tensor of a device comes to the device of the receiver. What lies on disk is sent from there.
"""

import io
import os
import pickle
import socket
import time
import weakref
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple

import torch
from torch import Tensor

from esper.checkpoint.digests import raw_bytes
from esper.checkpoint.packed import Packed
from esper.runtime.state.batches import laid, strides_of

LOST = (EOFError, OSError)
"""What a connection raises when the other end is gone."""


class Parcel(NamedTuple):
    """A message, ready to be sent; what was in it may change from now on, but for its tensors.

    Attributes:
        text: pickled, with a number in place of each part.
        parts: tensors, and states on disk.
    """

    text: bytes
    parts: list[Tensor | Packed]

    @classmethod
    def of(cls, message: Any) -> "Parcel":
        """Take a message apart."""
        file = io.BytesIO()
        pickler = _Pickler(file)
        pickler.dump(message)
        return cls(file.getvalue(), pickler.parts)

    def send(self, connection: Connection) -> None:
        """Send it; waits for devices and for the other end."""
        connection.send_bytes(self.text)
        connection.send([_Form.of(part) for part in self.parts])
        for part in self.parts:
            if isinstance(part, Packed):
                Parcel.of(part.read()).send(connection)
            else:
                connection.send_bytes(raw_bytes(part).data)


def received(connection: Connection, device: torch.device) -> Any:
    """The next message.

    Args:
        connection: to the other end.
        device: where tensors come that were not on the host.

    Raises:
        EOFError, OSError: if the other end is gone.
    """
    text = connection.recv_bytes()
    forms: list[_Form | None] = connection.recv()
    parts = [received(connection, device) if form is None else form.received(connection, device) for form in forms]
    return _Unpickler(io.BytesIO(text), parts).load()


class _Form(NamedTuple):
    """Of a tensor, all but its bytes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    requires_grad: bool
    is_on_host: bool

    @classmethod
    def of(cls, part: Tensor | Packed) -> "_Form | None":
        """None for a state on disk."""
        if isinstance(part, Packed):
            return None
        return cls(part.dtype, tuple(part.shape), strides_of(part), part.requires_grad, part.device.type == "cpu")

    def received(self, connection: Connection, device: torch.device) -> Tensor:
        tensor = torch.empty(self.shape, dtype=self.dtype)
        if tensor.numel():
            connection.recv_bytes_into(raw_bytes(tensor).data)
        else:
            connection.recv_bytes()
        own: Tensor = laid(tensor if self.is_on_host else tensor.to(device), self.strides)
        return own.requires_grad_(self.requires_grad)


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.parts: list[Tensor | Packed] = []
        self._numbers: dict[int, int] = {}

    def persistent_id(self, part: Any) -> int | None:
        is_plain = type(part) is Tensor and part.layout is torch.strided and not part.is_nested
        if not is_plain and not isinstance(part, Packed):
            return None
        if id(part) not in self._numbers:  # one tensor in the message is one there
            self._numbers[id(part)] = len(self.parts)
            self.parts.append(part)
        return self._numbers[id(part)]


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, parts: list[Any]) -> None:
        super().__init__(file)
        self._parts = parts

    def persistent_load(self, number: int) -> Any:
        return self._parts[number]


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

    def close(self, timeout: float | None = None) -> None:
        """Send what is still to be sent, and end."""
        self._outgoing.put(None)
        self._sender.join(timeout)
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
