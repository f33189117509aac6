"""Triton launches on the current device, whereas a model may be on another one."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

Launch = TypeVar("Launch", bound=Callable[..., Any])


def on_its_device(launch: Launch) -> Launch:
    """Have a function launch on the device of the tensor that is its first argument."""

    @wraps(launch)
    def launched(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.cuda.device_of(tensor):
            return launch(tensor, *args, **kwargs)

    return cast(Launch, launched)
