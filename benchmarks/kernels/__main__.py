"""``python -m benchmarks.kernels layer|step``: what dormant seeds cost on a GPU."""

from benchmarks.measurements import main

main(
    "kernels",
    {
        "layer": "a layer with 1,000 dormant seeds, eager and as a CUDA graph",
        "step": "a training step of a transformer the size of GPT-2 small, plain and wrapped, eager and compiled",
    },
)
