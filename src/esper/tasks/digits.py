"""scikit-learn's digits: 1,797 real images of 8 x 8 grey values, handwritten by 43 people."""

import torch

from esper.contracts.errors import ConfigError
from esper.tasks.mlp import MLPHost
from esper.tasks.task import Samples, Task

NUM_TRAIN, NUM_HELD_OUT = 800, 600
GREY_LEVELS = 16.0


def digits(seed: int) -> Task:
    """800 images to learn from, 600 held out, 397 for the test, dealt by ``seed``; the host is an MLP 64-8-8-10.

    Raises:
        ConfigError: if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigError(
            "The digits come with scikit-learn, which is not installed: pip install 'esper-morphogenetic[run]'."
        ) from error
    raw = load_digits()
    x = torch.from_numpy(raw.data).float() / GREY_LEVELS
    y = torch.from_numpy(raw.target).long()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    parts = order.split([NUM_TRAIN, NUM_HELD_OUT, len(x) - NUM_TRAIN - NUM_HELD_OUT])
    train, held_out, test = (Samples(x[rows], y[rows]) for rows in parts)
    return Task(
        name="digits",
        train=train,
        held_out=held_out,
        test=test,
        make_host=MLPHost((64, 8, 8, 10)),
        labels=tuple(str(name) for name in raw.target_names.tolist()),
        shape=(64,),
        mean=torch.zeros(64),
        std=torch.full((64,), GREY_LEVELS),
    )
