"""What seeds and grafts cost beside plain ``DistributedDataParallel``: ``python -m benchmarks.ranks [--output FILE]``.

One process for each GPU (NCCL), or two on the processor with a small model (gloo).
"""

import argparse
import os
import tempfile
from pathlib import Path

import torch
from torch import multiprocessing

from benchmarks.ranks.throughput import work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", help="a file for the figures, as JSON")
    output = parser.parse_args().output
    size = torch.cuda.device_count() if torch.cuda.is_available() else 2
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(work, (size, str(Path(folder, "store")), output), nprocs=size)


if __name__ == "__main__":
    main()
