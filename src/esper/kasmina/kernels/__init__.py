"""What is done at every step on many seeds or grafts, in a launch or two where torch would need many.

One folder for each operation: its twin in plain PyTorch (``reference``; of grafts it is ``grafts.group``), its Triton
kernel, and what chooses between them (``ops``).
"""
