"""Whether a CUDA graph takes down what runs now."""

import torch

HAS_GRAPHS = torch.backends.cuda.is_built()


def is_capturing() -> bool:
    """Whether a CUDA graph is being captured."""
    return HAS_GRAPHS and torch.cuda.is_current_stream_capturing()
