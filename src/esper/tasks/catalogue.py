"""Every task there is, by the names that the command line gives data and host."""

import os
from dataclasses import replace

from esper.contracts.errors import ConfigError, closest
from esper.tasks.cnn import CNNHost, Layout, image_of
from esper.tasks.digits import digits
from esper.tasks.folder import folder
from esper.tasks.host_settings import Settings, check, sized
from esper.tasks.mnist1d import mnist1d
from esper.tasks.npz import npz
from esper.tasks.own_host import with_own_host
from esper.tasks.table import table
from esper.tasks.table_file import ENDINGS
from esper.tasks.targets import Wanted
from esper.tasks.task import Task
from esper.tasks.text import text
from esper.tasks.text_mlp import TextMLPHost

NAMED = {"digits": digits, "mnist1d": mnist1d}
ARCHIVE = ".npz"
TEXT = "text:"
HOSTS_OF_FEATURES, HOSTS_OF_TEXT = ("mlp", "cnn"), ("gpt", "mlp")


def load_task(
    data: str,
    seed: int,
    host: str | None = None,
    *,
    label: str | None = None,
    task: Wanted = "auto",
    layout: Layout | None = None,
    host_settings: Settings | None = None,
) -> Task:
    """The task that ``data`` means, for the host that ``host`` means.

    Args:
        data: ``"digits"``, ``"mnist1d"``, the path of an ``.npz`` archive or of a table, or ``"text:"`` and the path of
            a file or folder.
        seed: deals the samples into training, held-out and test part.
        host: ``"mlp"``, ``"cnn"``, ``"gpt"`` or ``"module:factory"``; None takes ``"gpt"`` for text and ``"mlp"`` for
            all else.
        label: of a table, see :func:`~esper.tasks.table.table`.
        task: of a table or archive, see there.
        layout: where the channels of images are, for ``"cnn"``; None tells by the shape.
        host_settings: size of a built-in host, see :mod:`esper.tasks.host_settings`; None takes the task's own.

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
    if layout is not None and host != "cnn":
        raise ConfigError(f"--layout {layout} tells --host cnn where the channels of images are; leave it out.")
    settings = host_settings or {}
    if settings:
        check(settings, host or ("gpt" if is_text else "mlp"), is_text=is_text)
    context = settings.get("context")
    assert context is None or isinstance(context, int)
    loaded = _with_host(_data(data, seed, label, task, context), host, layout)
    return replace(loaded, make_host=sized(loaded.make_host, settings, loaded.shape[0])) if settings else loaded


def _with_host(loaded: Task, host: str | None, layout: Layout | None) -> Task:
    if loaded.is_text and host == "mlp":
        return replace(loaded, make_host=TextMLPHost(loaded.num_classes))
    if host == "cnn":
        shape, found = image_of(loaded.shape, layout)
        image = f"images of {' x '.join(map(str, shape[1:]))} in {shape[0]} channels, which come last"
        told = (*loaded.told, image) if found == "last" else loaded.told
        make_host = CNNHost(shape, loaded.num_classes, layout=found)
        return replace(loaded, make_host=make_host, told=told)
    if host is not None and ":" in host:
        return with_own_host(loaded, host)
    return loaded


def _data(data: str, seed: int, label: str | None, task: Wanted, context: int | None) -> Task:
    is_table = data.lower().endswith(ENDINGS) and not data.startswith(TEXT)
    if label is not None and not is_table:
        raise ConfigError(f"--label names a column of a table, and --data {data} is none. Leave it out.")
    if task != "auto" and not (is_table or data.endswith(ARCHIVE)):
        raise ConfigError(
            f"--task is for tables and .npz archives; --data {data} is known to be classes. Leave it out."
        )
    if data in NAMED:
        return NAMED[data](seed)
    if data.startswith(TEXT):
        path = data.removeprefix(TEXT)
        return folder(path, seed, context) if os.path.isdir(path) else text(path, context)
    if is_table:
        return table(data, seed, label=label, task=task)
    if data.endswith(ARCHIVE):
        return npz(data, seed, task=task)
    raise ConfigError(
        f"There is no data set {data!r}. {closest(data, [*NAMED, 'PATH.npz', 'PATH.csv', 'PATH.parquet', 'text:PATH'])}"
    )
