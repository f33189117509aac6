"""Work on the GPU in one launch where torch would need many: one folder for each operation, with its plain PyTorch twin
(``reference``), its Triton kernel (``triton``), and what chooses between them (``ops``)."""
