"""The document of the bus is made from the types; ``scripts/check_asyncapi`` lets the reference parser judge it."""

import json
import re
from pathlib import Path

from esper.oona.asyncapi import document
from esper.oona.messages import KINDS, TOPICS

PAGE = Path(__file__).parents[2] / "docs" / "asyncapi.json"


def test_the_page_is_that_of_the_types():
    assert json.loads(PAGE.read_text()) == json.loads(json.dumps(document())), "run: make docs"


def test_every_kind_is_a_message_of_its_topic():
    channels = document()["channels"]
    assert set(channels) == set(TOPICS)
    told = {name: topic for topic, channel in channels.items() for name in channel["messages"]}
    assert told == {name: kind.topic for name, kind in KINDS.items()}


def test_whatever_is_referred_to_is_there():
    found = document()
    for reference in set(re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(found))):
        part = found
        for name in reference.split("/"):
            part = part[name]
        assert part
