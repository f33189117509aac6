"""The user's own text: the next character, in three stretches of the file."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from esper.contracts.errors import ConfigError, DataError
from esper.tasks.gpt import GPTHost
from esper.tasks.task import Task
from esper.tasks.windows import LEAST_JUDGED, spread, windows

MIN_CHARACTERS = 5_000
LONG_WINDOW, SHORT_WINDOW = 64, 32
LONG_TEXT = 50_000
TRAIN_SHARE, HELD_OUT_SHARE = 0.8, 0.1
LEAST_SHARE = 0.15


def text(path: str | Path, context: int | None = None) -> Task:
    """Predict the next character of a UTF-8 file from those before it in a window.

    The file is cut into three stretches in a row: 80 % to train on, then 10 % held out, then 10 % for the test; of a
    text below 50,000 characters 70, 15 and 15 %. Windows do not overlap. At most 1,000 held-out and 1,000 test windows
    are used, evenly spread; neighbouring held-out windows, which tell of the same things, are judged as one. The labels
    are the characters. The host is a GPT of 4 blocks.

    Args:
        path: of the file.
        context: characters of a window; None takes 64, or 32 where the text is short.

    Raises:
        ConfigError: if ``context`` leaves too few windows to judge by.
        DataError: if the file cannot be read, is no text, or is too short.
    """
    path = Path(path)
    characters = _characters(path)
    vocabulary, codes = np.unique(characters, return_inverse=True)
    if len(vocabulary) < 2:
        raise DataError(f"{path} holds {chr(vocabulary[0])!r} only. A text with different characters is needed.")
    is_long = len(codes) >= LONG_TEXT
    length = context or (LONG_WINDOW if is_long else SHORT_WINDOW)
    judged = HELD_OUT_SHARE if is_long else LEAST_SHARE
    ends = [round((1 - 2 * judged) * len(codes)), round((1 - judged) * len(codes))]
    stretches = torch.from_numpy(codes).tensor_split(ends)
    train, held_out, test = (windows(stretch, length) for stretch in stretches)
    if context is not None and len(test.y) < LEAST_JUDGED:
        raise ConfigError(
            f"--host-settings context={context} leaves {len(test.y)} windows of {path} to be tested by, and "
            f"{LEAST_JUDGED} are needed. Take {(len(stretches[2]) - 1) // LEAST_JUDGED} at most, or a longer text."
        )
    held_out, groups = spread(held_out)
    test, test_groups = spread(test)
    return Task(
        name=path.stem,
        train=train,
        held_out=held_out,
        test=test,
        make_host=GPTHost(vocabulary=len(vocabulary), context=length),
        labels=tuple(map(chr, vocabulary.tolist())),
        shape=(length,),
        groups=groups,
        test_groups=test_groups,
    )


def _characters(path: Path) -> np.ndarray[Any, np.dtype[np.uint32]]:
    if not path.exists():
        raise DataError(
            f"There is no file or folder {path}. Give the path of a text, or of a folder of texts, after 'text:'."
        )
    if not path.is_file():
        raise DataError(f"{path} is not a file. Give the path of a text after 'text:'.")
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (at byte {error.start}). Store it as UTF-8.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    if len(content) < MIN_CHARACTERS:
        raise DataError(
            f"{path} holds {len(content):,} characters; at least {MIN_CHARACTERS:,} are needed to train and to judge, "
            "and 80,000 for verdicts that tell small gains from luck."
        )
    return np.frombuffer(content.encode("utf-32-le"), dtype=np.uint32)
