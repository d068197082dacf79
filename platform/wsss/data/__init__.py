"""Data sets: lists, pictures, image-level labels and masks, handed out by declaration."""

from wsss.data.config import DatasetConfig
from wsss.data.dataset import Dataset, load_dataset
from wsss.data.errors import DataError, LabelFirewallError, Problem
from wsss.data.firewall import forbid_mask_reading
from wsss.data.view import DataView

__all__ = [
    "DataError",
    "DataView",
    "Dataset",
    "DatasetConfig",
    "LabelFirewallError",
    "Problem",
    "forbid_mask_reading",
    "load_dataset",
]
