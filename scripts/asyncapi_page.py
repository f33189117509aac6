"""Write ``docs/asyncapi.json``: all topics and messages of the bus, from the types."""

import json
from pathlib import Path

from esper.oona.asyncapi import document

PAGE = Path(__file__).parent.parent / "docs" / "asyncapi.json"

if __name__ == "__main__":
    PAGE.write_text(json.dumps(document(), indent=2, sort_keys=True) + "\n")
    print(PAGE)
