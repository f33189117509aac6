"""Every task there is, by the name that the command line gives it."""

from esper.contracts.errors import ConfigError, closest
from esper.tasks.digits import digits
from esper.tasks.npz import npz
from esper.tasks.task import Task

NAMED = {"digits": digits}


def load_task(data: str, seed: int) -> Task:
    """The task that ``data`` means: a name, or the path of an ``.npz`` file.

    Args:
        data: ``"digits"`` or a path.
        seed: deals the samples into training, held-out and test part.

    Raises:
        ConfigError: if it is neither.
        DataError: if the file cannot be used.
    """
    if data in NAMED:
        return NAMED[data](seed)
    if data.endswith(".npz"):
        return npz(data, seed)
    raise ConfigError(f"There is no data set {data!r}. {closest(data, [*NAMED, 'the path of an .npz file'])}")
