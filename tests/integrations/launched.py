"""A run that a launcher starts: ``-m tests.integrations.launched FUNCTION FOLDER`` writes what each process tells.

``FUNCTION`` is as in ``lightning_runs.two``.
"""

import json
import os
import random
import sys
from importlib import import_module
from pathlib import Path

import torch

if __name__ == "__main__":
    module, function = sys.argv[1].split(".")
    torch.set_num_threads(1)
    random.seed(0)
    run, folder = getattr(import_module(f"tests.integrations.{module}"), function), Path(sys.argv[2])
    told = run(folder)
    (folder / f"launched-{os.environ.get('LOCAL_RANK', '0')}").write_text(json.dumps(told))
