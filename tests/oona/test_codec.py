"""Structs to messages and back; what cannot be read is refused with a reason."""

import math
import random
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from esper.contracts.commands import Answer, Command
from esper.contracts.config import GrowthConfig
from esper.contracts.errors import BusError
from esper.contracts.lifecycle import State
from esper.contracts.reports import FieldReport, Observation, Piece, PlaceReport, SeedReport
from esper.oona.bus import Message, UnreadableError
from esper.oona.codec import EXPIRES, LARGEST_BYTES, TRACEPARENT, Codec, Signing
from esper.oona.messages import KINDS, TOPICS, Body, LayerHealthReport, ObservationReport, column, schemas, values

PLACE = PlaceReport("a", "layer", (0, 1), False, 3, 4, (0, 2, 4), seeds=SeedReport(gradient_norm=(0.1, 0.2)))
PIECES = (Piece("a", "beside", 3, 4), Piece("a.b", "conv", 4, 6, "image", 9, 81, 4, 6, 0, 1, (3, 3), has_bias=True))
COLONY = PlaceReport("*", "colony", (0,), False, 3, 4, (0, 4), pieces=PIECES)
REPORT = FieldReport(
    1, "a", "all", "glu", {"hidden": 3}, "ramp", "round", 5, 1, 2, "CULLED", "lost", {"twin": {"z": 1}}
)
KEYS = {"new": b"n" * 32, "old": b"o" * 32}


def example(kind: type[Body]) -> Body:
    """One of a kind, from its own types."""
    given_for: dict[str, Any] = {
        "run_id": "run",
        "seed_ids": [3, 5],
        "columns": {"gradient_norm": column([0.5, math.nan])},
        "states": b"\x00\x06",
        "config": GrowthConfig(layers=["a", "b:c"], keep_looks=(0.5,)),
        "observation": Observation(1, 2, 3, (0.5, math.inf), (), (PLACE, COLONY), 0, 1, 0, reports=(REPORT,)),
        "answers": [Answer(False, "no", versions=(1, 2), command_id="c")],
        "report": REPORT,
        "remarks": ["it waits"],
        "commands": [Command("a", (1, 2), State.GERMINATED, blueprint="glu", also={"b": "all"}, version=(1, 2, 3))],
    }

    def value(field: msgspec.structs.FieldInfo) -> Any:
        if field.name in given_for:
            return given_for[field.name]
        for candidate in (7, "round", "cull", "CANCELLED", "text", True, [1], {"a": 1}, 0.5, b"", None):
            try:
                return msgspec.convert(candidate, field.type)
            except msgspec.ValidationError:
                continue
        raise AssertionError(field)

    return kind(**{field.name: value(field) for field in msgspec.structs.fields(kind)})


EXAMPLES = [example(kind) for kind in KINDS.values()]
every = pytest.mark.parametrize("body", EXAMPLES, ids=list(KINDS))


@every
@pytest.mark.parametrize("signing", [None, Signing(KEYS, "new")], ids=["plain", "signed"])
def test_what_is_decoded_is_what_was_encoded(body, signing):
    codec = Codec(signing)
    message = codec.encode(body, "run")
    assert message.topic in TOPICS
    decoded = codec.decode(message)
    assert type(decoded) is type(body)
    assert codec.encode(decoded, "run").body == message.body  # a sequence is a tuple or a list


def test_a_colony_arrives_with_its_pieces():
    (body,) = [one for one in EXAMPLES if isinstance(one, ObservationReport)]
    arrived = Codec(None).decode(Codec(None).encode(body, "run"))
    assert arrived.observation.places[1] == COLONY


def test_a_thousand_seeds_take_little_more_than_their_values():
    body = LayerHealthReport(
        run_id="run",
        step=1,
        epoch=1,
        layer_id="layer",
        states=bytes(1000),
        columns={f"column_{index}": random.Random(index).randbytes(4000) for index in range(4)},
    )
    assert len(Codec().encode(body, "run").body) < 4 * 4 * 1000 + 1000 + 300


class TestCompressed:
    BODY = LayerHealthReport(
        run_id="run", step=1, epoch=1, layer_id="layer", states=bytes(1000), columns={"a": column([0.5] * 1000)}
    )

    def test_what_gets_smaller_by_it_and_nothing_else(self):
        codec = Codec()
        message = codec.encode(self.BODY, "run")
        assert message.headers["encoding"] == "zstd"
        assert len(message.body) < 500
        assert codec.decode(message) == self.BODY
        noise = random.Random(0).randbytes(4000)
        plain = codec.encode(msgspec.structs.replace(self.BODY, states=b"", columns={"a": noise}), "run")
        assert "encoding" not in plain.headers

    def test_what_cannot_be_expanded_within_bounds_is_refused(self):
        codec = Codec()
        message = codec.encode(self.BODY, "run")
        bomb = zstandard.ZstdCompressor().compress(bytes(LARGEST_BYTES + 1))
        assert len(bomb) < 10_000
        unsized = zstandard.ZstdCompressor(write_content_size=False).compress(b"x" * 2000)
        for body in (bomb, unsized, b"", b"noise", message.body[:-1]):
            with pytest.raises(UnreadableError, match=r"at most|cannot be decompressed"):
                codec.decode(replace(message, body=body))
        with pytest.raises(UnreadableError, match="encoding is unknown: 'gzip'"):
            codec.decode(replace(message, headers={**message.headers, "encoding": "gzip"}))


@given(st.lists(st.floats(width=32, allow_nan=False)))
def test_a_column_keeps_its_values(numbers):
    assert values(column(numbers)) == numbers


def test_a_column_that_was_cut_is_refused():
    with pytest.raises(ValueError, match="multiple"):
        values(column([1.0, 2.0])[:-1])


class TestRefused:
    CODEC = Codec()
    MESSAGE = CODEC.encode(EXAMPLES[0], "run")

    def reason(self, message: Message) -> str | None:
        """Why it is refused; None if it is not."""
        try:
            self.CODEC.decode(message)
        except UnreadableError as error:
            return str(error)
        return None

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"headers": {}}, "kind is unknown: ''"),
            ({"headers": {"kind": "Body", "version": "1"}}, "kind is unknown"),
            ({"headers": {"kind": "LayerHealthReport"}}, "is of version ''; this side reads 1"),
            ({"headers": {"kind": "LayerHealthReport", "version": "2"}}, "is of version '2'; this side reads 1"),
            ({"topic": "karn.blueprint"}, "belongs to kasmina.health.layer"),
            ({"key": "other"}, "another run"),
            ({"body": b""}, "cannot be read"),
            ({"body": MESSAGE.body[:-1]}, "cannot be read"),
            ({"body": MESSAGE.body + b"x"}, "cannot be read"),
            ({"body": b"\x91" * 100_000}, "cannot be read"),
            ({"body": bytes(LARGEST_BYTES + 1)}, "at most"),
        ],
    )
    def test_with_a_reason(self, change, reason):
        with pytest.raises(UnreadableError, match=reason):
            self.CODEC.decode(replace(self.MESSAGE, **change))

    @every
    def test_a_field_too_many_too_few_or_of_another_type(self, body):
        fields = msgspec.structs.asdict(body)
        required = [field.name for field in msgspec.structs.fields(body) if field.required]
        wrong = [fields | {"extra": 1}, {name: fields[name] for name in fields if name != required[0]}]
        wrong += [fields | {name: object_of_no_type} for name in required for object_of_no_type in ({"x": [None]},)]
        for one in wrong:
            broken = replace(self.CODEC.encode(body, "run"), body=msgspec.msgpack.encode(one))
            assert isinstance(self.reason(broken), str) or self.CODEC.decode(broken) != body  # it holds any mapping

    @pytest.mark.parametrize("seed", range(20))
    def test_whatever_noise_is_made_of_it(self, seed):
        """Never another error than the one with a reason, and never the same struct."""
        chance = random.Random(seed)
        for body in EXAMPLES:
            message = self.CODEC.encode(body, "run")
            for _ in range(100):
                raw = bytearray(message.body)
                for _ in range(chance.randint(1, 4)):
                    raw[chance.randrange(len(raw))] = chance.randrange(256)
                reason = self.reason(replace(message, body=bytes(raw[: chance.randint(0, 2 * len(raw))])))
                assert reason is None or (reason.isprintable() and len(reason) < 500)


class TestSigned:
    CODEC = Codec(Signing(KEYS, "new"))

    @every
    def test_every_byte_counts(self, body):
        message = self.CODEC.encode(body, "run", {TRACEPARENT: "00-1-2-01"})
        assert TRACEPARENT in message.headers
        changed = [replace(message, body=message.body[:-1] + bytes([message.body[-1] ^ 1])), replace(message, key="x")]
        changed += [replace(message, headers={**message.headers, name: "9" * 12}) for name in message.headers]
        changed += [replace(message, headers={**message.headers, "further": ""})]
        for one in changed:
            with pytest.raises(UnreadableError, match=r"signature is wrong|unknown key"):
                self.CODEC.decode(one)

    def test_what_nobody_signed_is_refused(self):
        with pytest.raises(UnreadableError, match="not signed"):
            self.CODEC.decode(Codec().encode(EXAMPLES[0], "run"))

    def test_an_older_key_is_still_believed_and_a_foreign_one_is_not(self):
        assert self.CODEC.decode(Codec(Signing(KEYS, "old")).encode(EXAMPLES[0], "run")) == EXAMPLES[0]
        for foreign in (Signing({"other": b"x" * 32}, "other"), Signing({"new": b"x" * 32}, "new")):
            with pytest.raises(UnreadableError, match=r"unknown key|signature is wrong"):
                self.CODEC.decode(Codec(foreign).encode(EXAMPLES[0], "run"))

    def test_what_is_late_is_refused(self):
        message = Codec(Signing(KEYS, "new", lifetime_s=-1.0)).encode(EXAMPLES[0], "run")
        assert EXPIRES in message.headers
        with pytest.raises(UnreadableError, match="it is late"):
            self.CODEC.decode(message)

    def test_no_two_messages_have_one_nonce(self):
        headers = [self.CODEC.encode(EXAMPLES[0], "run").headers for _ in range(100)]
        assert len({one["nonce"] for one in headers}) == len({one["signature"] for one in headers}) == 100

    def test_secrets_are_not_shown(self):
        assert "nnnn" not in repr(Signing(KEYS, "new"))

    @pytest.mark.parametrize(("keys", "key_id", "why"), [(KEYS, "nwe", "no key 'nwe'"), ({"a": b"short"}, "a", "16")])
    def test_keys_that_do_not_do_are_refused(self, keys, key_id, why):
        with pytest.raises(BusError, match=why):
            Signing(keys, key_id)


def test_every_kind_has_a_schema_that_forbids_what_it_does_not_name():
    found = schemas()
    assert set(KINDS) <= set(found)
    assert all(found[name]["additionalProperties"] is False for name in KINDS)
