"""Large payloads lie in a store; what is not there as it was left is refused, each with its own reason."""

import os
import random
import time
from dataclasses import replace
from pathlib import Path

import pytest

from esper.contracts.errors import BusUnavailableError
from esper.oona.bus import UnreadableError
from esper.oona.claims import CLAIM, Claims
from esper.oona.codec import Codec, Signing
from esper.oona.messages import BlueprintProposal
from esper.oona.url import open_bus

LARGE, OTHER = (
    BlueprintProposal(blueprint="large", settings={}, genome=random.Random(seed).randbytes(2**20).hex())
    for seed in (0, 1)
)
SMALL = BlueprintProposal(blueprint="small", settings={})
KEYS = Signing({"a": b"k" * 32}, "a")


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


@pytest.fixture
def codec(folder) -> Codec:
    return Codec(claims=Claims(f"file://{folder}"))


def left(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("kind", ["memory", "file", "redis"])
@pytest.mark.parametrize("signing", [None, KEYS], ids=["plain", "signed"])
def test_a_large_payload_is_given_back_and_a_small_one_goes_along(folder, kind, signing, request):
    url = {"memory": "memory:///", "file": f"file://{folder}"}.get(kind) or request.getfixturevalue("redis_url")
    codec = Codec(signing, Claims(url))
    large, small = codec.encode(LARGE, "run"), codec.encode(SMALL, "run")
    assert (large.body, CLAIM in large.headers, CLAIM in small.headers) == (b"", True, False)
    assert (codec.decode(large), codec.decode(small)) == (LARGE, SMALL)


@pytest.mark.parametrize("transport", ["memory:", "sqlite:{folder}/bus.db"])
def test_it_crosses_a_bus(codec, folder, transport):
    bus = open_bus(transport.format(folder=folder))
    subscription = bus.subscribe(LARGE.topic, "group", "one")
    bus.publish(codec.encode(LARGE, "run"))
    (got,) = subscription.receive(timeout_s=10)
    assert codec.decode(got.message) == LARGE
    bus.close()


class TestRefused:
    def test_missing(self, codec, folder):
        message = codec.encode(LARGE, "run")
        left(folder)[0].unlink()
        with pytest.raises(UnreadableError, match="payload is missing"):
            codec.decode(message)

    def test_late(self, folder):
        codec = Codec(claims=Claims(f"file://{folder}", lifetime_s=-1.0))
        with pytest.raises(UnreadableError, match="payload is late"):
            codec.decode(codec.encode(LARGE, "run"))

    def test_cut(self, codec, folder):
        message = codec.encode(LARGE, "run")
        (path,) = left(folder)
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(UnreadableError, match=r"payload has \d+ bytes, not"):
            codec.decode(message)

    def test_tampered(self, codec, folder):
        message = codec.encode(LARGE, "run")
        (path,) = left(folder)
        raw = bytearray(path.read_bytes())
        raw[1000] ^= 1
        path.write_bytes(raw)
        with pytest.raises(UnreadableError, match="another than the one that was left"):
            codec.decode(message)

    def test_swapped(self, codec):
        one = codec.encode(LARGE, "run")
        other = codec.encode(
            BlueprintProposal(blueprint="other", settings={}, genome=random.Random(1).randbytes(2**20).hex()), "run"
        )
        swapped = replace(one, headers={**one.headers, CLAIM: other.headers[CLAIM]})
        with pytest.raises(UnreadableError, match=r"another than the one that was left|bytes, not"):
            codec.decode(swapped)

    @pytest.mark.parametrize("name", ["", "../secret", "/etc/passwd", "a b", "a/b"])
    def test_a_claim_that_leads_elsewhere(self, codec, folder, name):
        (folder / "secret").write_bytes(b"s")
        message = codec.encode(LARGE, "run")
        with pytest.raises(UnreadableError, match="names nothing"):
            codec.decode(replace(message, headers={**message.headers, CLAIM: name}))

    def test_too_large_to_be_fetched(self, codec):
        message = codec.encode(LARGE, "run")
        with pytest.raises(UnreadableError, match="at most"):
            codec.decode(replace(message, headers={**message.headers, "claim-bytes": "9" * 15}))

    def test_by_a_side_that_has_no_store(self, codec):
        with pytest.raises(UnreadableError, match="store that this side does not know"):
            Codec().decode(codec.encode(LARGE, "run"))

    def test_a_claim_that_was_changed_on_its_way(self, folder):
        codec = Codec(KEYS, Claims(f"file://{folder}"))
        message = codec.encode(LARGE, "run")
        with pytest.raises(UnreadableError, match="signature is wrong"):
            codec.decode(replace(message, headers={**message.headers, "claim-digest": "0" * 64}))


def test_a_store_that_takes_nothing_is_told_without_its_secrets():
    claims = Claims(
        "s3://bucket/folder",
        aws_access_key_id="AKIASECRET",
        aws_secret_access_key="verysecret",
        aws_endpoint="http://127.0.0.1:9",
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )
    with pytest.raises(BusUnavailableError, match="does not serve us") as caught:
        Codec(claims=claims).encode(LARGE, "run")
    assert "verysecret" not in str(caught.value)


def test_old_payloads_are_swept_away_by_whoever_leaves_another(folder):
    Codec(claims=Claims(f"file://{folder}", lifetime_s=100.0)).encode(LARGE, "run")
    (old,) = left(folder)
    os.utime(old, (time.time() - 200, time.time() - 200))
    codec = Codec(claims=Claims(f"file://{folder}", lifetime_s=100.0))
    young = codec.encode(LARGE, "run")
    assert not old.exists()
    assert codec.decode(young) == LARGE


def test_redis_takes_them_away_by_itself(redis_url):
    codec = Codec(claims=Claims(redis_url, lifetime_s=0.05))
    message = codec.encode(LARGE, "run")
    time.sleep(0.1)
    message = replace(message, headers={**message.headers, "claim-until": repr(time.time() + 100)})
    with pytest.raises(UnreadableError, match="payload is missing"):
        codec.decode(message)


def test_a_redis_that_is_not_there_is_told_without_its_password():
    claims = Claims("redis://:verysecret@127.0.0.1:9")
    with pytest.raises(BusUnavailableError, match="does not serve us") as caught:
        Codec(claims=claims).encode(LARGE, "run")
    assert "verysecret" not in str(caught.value)
