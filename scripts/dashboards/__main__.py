"""``python -m scripts.dashboards`` writes the dashboards to deploy/grafana/dashboards."""

import json
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from scripts.dashboards import comparison, errors, overview, rollout, seeds
from scripts.dashboards.panel import Board

FOLDER = Path(__file__).parent.parent.parent / "deploy" / "grafana" / "dashboards"

BOARDS: tuple[Board, ...] = (overview.BOARD, rollout.BOARD, comparison.BOARD, errors.BOARD, seeds.BOARD)


def text(board: Board) -> str:
    """What stands in its file."""
    return json.dumps(board.built(), cls=JSONEncoder, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for board in BOARDS:
        (FOLDER / f"{board.name}.json").write_text(text(board))
