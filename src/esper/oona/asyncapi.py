"""The bus as an AsyncAPI 3.1 document, made from the types: for readers in other languages."""

from typing import Any

from esper.oona.codec import KIND, TRACEPARENT, VERSION
from esper.oona.messages import KINDS, TOPICS, schemas


def document() -> dict[str, Any]:
    """The document as plain values, ready for JSON."""
    return {
        "asyncapi": "3.1.0",
        "info": {
            "title": "Esper",
            "version": "1",
            "description": "What a run tells, and what it may be told. Bodies are msgpack; bytes are base64 in JSON.",
        },
        "defaultContentType": "application/vnd.msgpack",
        "channels": {topic: _channel(topic) for topic in TOPICS},
        "operations": {
            f"{_camel(topic)}": {"action": "send", "channel": {"$ref": f"#/channels/{topic}"}} for topic in TOPICS
        },
        "components": {
            "messages": {name: _message(name) for name in KINDS},
            "schemas": schemas(),
        },
    }


def _channel(topic: str) -> dict[str, Any]:
    messages = {name: {"$ref": f"#/components/messages/{name}"} for name, kind in KINDS.items() if kind.topic == topic}
    return {"address": topic, "messages": messages}


def _message(name: str) -> dict[str, Any]:
    kind = KINDS[name]
    headers = {KIND: {"const": name}, VERSION: {"const": str(kind.schema_version)}}
    further = {TRACEPARENT: {"type": "string", "description": "W3C Trace Context: the span of the sender"}}
    return {
        "name": name,
        "summary": (kind.__doc__ or "").partition("\n")[0],
        "headers": {"type": "object", "properties": headers | further, "required": [KIND, VERSION]},
        "payload": {"$ref": f"#/components/schemas/{name}"},
    }


def _camel(topic: str) -> str:
    return "".join(word.title() for word in topic.replace("_", ".").split("."))
