"""Every task there is, by the names that the command line gives data and host."""

from dataclasses import replace

from esper.contracts.errors import ConfigError, closest
from esper.tasks.cnn import CNNHost, shape_of
from esper.tasks.digits import digits
from esper.tasks.mnist1d import mnist1d
from esper.tasks.npz import npz
from esper.tasks.own_host import with_own_host
from esper.tasks.table import table
from esper.tasks.task import Task
from esper.tasks.text import text
from esper.tasks.text_mlp import TextMLPHost

NAMED = {"digits": digits, "mnist1d": mnist1d}
FILES = {".npz": npz, ".csv": table}
TEXT = "text:"
HOSTS_OF_FEATURES, HOSTS_OF_TEXT = ("mlp", "cnn"), ("gpt", "mlp")


def load_task(data: str, seed: int, host: str | None = None) -> Task:
    """The task that ``data`` means, for the host that ``host`` means.

    Args:
        data: ``"digits"``, ``"mnist1d"``, the path of an ``.npz`` or ``.csv`` file, or ``"text:"`` and a path.
        seed: deals the samples into training, held-out and test part.
        host: ``"mlp"``, ``"cnn"``, ``"gpt"`` or ``"module:factory"``; None takes ``"gpt"`` for text and ``"mlp"`` for
            all else.

    Raises:
        ConfigError: if there is no such data or host, or the two do not go together.
        DataError: if the file cannot be used.
    """
    is_text = data.startswith(TEXT)
    possible = HOSTS_OF_TEXT if is_text else HOSTS_OF_FEATURES
    if host is not None and ":" not in host and host not in possible:
        if host in HOSTS_OF_FEATURES + HOSTS_OF_TEXT:
            what = "a text" if is_text else "features"
            raise ConfigError(
                f"--host {host} cannot learn --data {data}, which is {what}. Possible: {', '.join(possible)}, or a "
                "factory of your own, module:factory."
            )
        raise ConfigError(f"There is no host {host!r}. {closest(host, [*possible, 'module:factory'])}")
    task = _data(data, seed)
    if is_text and host == "mlp":
        return replace(task, make_host=TextMLPHost(task.num_classes))
    if host == "cnn":
        return replace(task, make_host=CNNHost(shape_of(task.shape), task.num_classes))
    if host is not None and ":" in host:
        return with_own_host(task, host)
    return task


def _data(data: str, seed: int) -> Task:
    if data in NAMED:
        return NAMED[data](seed)
    if data.startswith(TEXT):
        return text(data.removeprefix(TEXT))
    for ending, read in FILES.items():
        if data.endswith(ending):
            return read(data, seed)
    raise ConfigError(f"There is no data set {data!r}. {closest(data, [*NAMED, 'PATH.npz', 'PATH.csv', 'text:PATH'])}")
