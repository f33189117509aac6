"""Structs to messages and back: strictly, within bounds, signed where there is a key.

A message that cannot be read is refused with a reason, and nothing else happens: it belongs to the dead letters.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import msgspec
import zstandard

from esper.contracts.errors import BusError, closest
from esper.oona.bus import Message, UnreadableError, UntrustedError
from esper.oona.claims import CLAIM, Claims
from esper.oona.messages import KINDS, Body

LARGEST_BYTES = 64 * 2**20
"""A body that is larger is not looked at."""

COMPRESSED_FROM_BYTES = 1024
"""Bodies from this size on are compressed by zstd at level 1, where that takes a tenth off: a report of 1,000 seeds of
random numbers by 15 %, in 17 us, repetitive ones by far more (``python -m benchmarks.bus compression``)."""

ENCODING, ZSTD = "encoding", "zstd"
TRACEPARENT = "traceparent"
"""Header that names the span of the sender, as W3C Trace Context writes it; who does not trace leaves it alone."""

KIND, VERSION, NONCE, EXPIRES, KEY_ID, SIGNATURE = "kind", "version", "nonce", "expires", "key-id", "signature"


@dataclass(frozen=True)
class Signing:
    """Signs what is sent and checks what comes, by HMAC-SHA256 over topic, key, headers and body (RFC 2104).

    Args:
        keys: secrets of at least 16 bytes, by their ids; several while one replaces another.
        key_id: the one to sign with.
        lifetime_s: after which a message is refused as late.
    """

    keys: Mapping[str, bytes] = field(repr=False)
    key_id: str
    lifetime_s: float = 300.0

    def __post_init__(self) -> None:
        if self.key_id not in self.keys:
            raise BusError(f"There is no key {self.key_id!r} to sign with. {closest(self.key_id, self.keys)}")
        for name, key in self.keys.items():
            if len(key) < 16:
                raise BusError(f"The key {name!r} has {len(key)} bytes. Give at least 16, from a random source.")

    def signed(self, message: Message) -> Message:
        """The message with nonce, expiry, key id and signature among its headers."""
        further = {NONCE: secrets.token_hex(12), EXPIRES: repr(time.time() + self.lifetime_s), KEY_ID: self.key_id}
        ready = replace(message, headers={**message.headers, **further})
        return replace(ready, headers={**ready.headers, SIGNATURE: _signature(self.keys[self.key_id], ready)})

    def check(self, message: Message) -> None:
        """Refuse what was not signed by one of the keys, was changed, or is late.

        Raises:
            UntrustedError: with the reason.
        """
        headers = dict(message.headers)
        signature, key_id = headers.pop(SIGNATURE, None), headers.get(KEY_ID, "")
        if signature is None:
            raise UntrustedError("it is not signed")
        if key_id not in self.keys:
            raise UntrustedError(f"it is signed with an unknown key, {key_id[:40]!r}")
        if not hmac.compare_digest(signature, _signature(self.keys[key_id], replace(message, headers=headers))):
            raise UntrustedError("its signature is wrong")
        if float(headers[EXPIRES]) < time.time():
            raise UntrustedError("it is late")


def _signature(key: bytes, message: Message) -> str:
    """Parts are told apart by their lengths, so that no byte can move from one to the next."""
    digest = hmac.new(key, digestmod=hashlib.sha256)
    headers = [part for pair in sorted(message.headers.items()) for part in pair]
    for part in (message.topic, message.key, *headers):
        raw = part.encode()
        digest.update(len(raw).to_bytes(8, "big") + raw)
    digest.update(message.body)
    return digest.hexdigest()


class Codec:
    """Writes and reads messages.

    Args:
        signing: None neither signs nor asks for signatures.
        claims: where large payloads go; None lets them go along.
    """

    def __init__(self, signing: Signing | None = None, claims: Claims | None = None) -> None:
        self._signing, self._claims = signing, claims
        self._encoder = msgspec.msgpack.Encoder()
        self._compressor = zstandard.ZstdCompressor(level=1)
        self._decoders = {name: msgspec.msgpack.Decoder(kind, strict=True) for name, kind in KINDS.items()}

    def encode(self, body: Body, key: str, further: Mapping[str, str] | None = None) -> Message:
        """The message of a struct.

        Args:
            body: the struct.
            key: whose order counts; a run's id.
            further: headers that go along, such as :data:`TRACEPARENT`.

        Raises:
            BusUnavailableError: if the store of large payloads does not take it.
        """
        headers = {**(further or {}), KIND: type(body).__name__, VERSION: str(body.schema_version)}
        raw = self._encoder.encode(body)
        if len(raw) >= COMPRESSED_FROM_BYTES and len(smaller := self._compressor.compress(raw)) < 0.9 * len(raw):
            raw, headers[ENCODING] = smaller, ZSTD
        message = Message(body.topic, key, raw, headers)
        if self._claims is not None:
            message = self._claims.check_in(message)
        return message if self._signing is None else self._signing.signed(message)

    def decode(self, message: Message) -> Body:
        """The struct of a message.

        Raises:
            UnreadableError: if it is too large, of an unknown kind or version, in another's topic, not signed as it
                must be, not what its kind says, or its payload is gone.
            BusUnavailableError: if the store of large payloads does not answer: try again.
        """
        if len(message.body) > LARGEST_BYTES:
            raise UnreadableError(f"it has {len(message.body)} bytes; at most {LARGEST_BYTES} are read")
        if self._signing is not None:
            self._signing.check(message)
        if CLAIM in message.headers:
            message = self._redeemed(message)
        message = _expanded(message)
        name, version = message.headers.get(KIND, ""), message.headers.get(VERSION, "")
        if name not in KINDS:
            raise UnreadableError(f"its kind is unknown: {name[:80]!r}")
        kind = KINDS[name]
        if version != str(kind.schema_version):
            raise UnreadableError(f"{name} is of version {version[:20]!r}; this side reads {kind.schema_version}")
        if message.topic != kind.topic:
            raise UnreadableError(f"{name} belongs to {kind.topic}, not {message.topic}")
        try:
            body: Body = self._decoders[name].decode(message.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            told = str(error).encode("unicode_escape").decode()[:300]  # it quotes what came
            raise UnreadableError(f"{name} cannot be read: {told}") from None
        if getattr(body, "run_id", message.key) != message.key:
            raise UnreadableError(f"{name} is of another run than its key says")
        return body

    def _redeemed(self, message: Message) -> Message:
        if self._claims is None:
            raise UnreadableError("its payload is in a store that this side does not know")
        return self._claims.redeem(message, LARGEST_BYTES)


def _expanded(message: Message) -> Message:
    encoding = message.headers.get(ENCODING)
    if encoding is None:
        return message
    if encoding != ZSTD:
        raise UnreadableError(f"its encoding is unknown: {encoding[:40]!r}")
    try:
        size = zstandard.frame_content_size(message.body)
        if not 0 <= size <= LARGEST_BYTES:
            raise UnreadableError(f"it would have {size} bytes; at most {LARGEST_BYTES} are read")
        return replace(message, body=zstandard.ZstdDecompressor().decompress(message.body, max_output_size=size))
    except zstandard.ZstdError as error:
        raise UnreadableError(f"it cannot be decompressed: {error}") from None
