"""Platform on which weakly supervised semantic segmentation methods are reproduced and tuned."""

__version__ = "0.1.0"
