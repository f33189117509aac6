"""Whether a CUDA graph takes down what runs now."""

import torch


def is_capturing() -> bool:
    """Whether a CUDA graph is being captured; where no device was ever used, torch could not even tell."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
