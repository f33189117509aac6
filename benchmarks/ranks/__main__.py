"""What seeds and grafts cost beside the bare model in ``DistributedDataParallel``, or under ``fully_shard``:
``python -m benchmarks.ranks [--shard] [--output FILE]``.

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
    parser.add_argument("--shard", action="store_true", help="fully_shard in place of DistributedDataParallel")
    asked = parser.parse_args()
    size = torch.cuda.device_count() if torch.cuda.is_available() else 2
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(work, (size, str(Path(folder, "store")), asked.output, asked.shard), nprocs=size)


if __name__ == "__main__":
    main()
