"""speedprof: where the milliseconds of a distributed training step go, and how sure we are of it."""

__version__ = "0.1.0"
