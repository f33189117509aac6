"""What a figure was measured on."""

from esper.evaluation.machine import machine

__all__ = ["machine"]
