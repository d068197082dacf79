"""Tracking: every number on disk first, then in MLflow. The only package that imports mlflow.

Importing it stays cheap: mlflow itself is imported in the background thread, when there is something to send.
"""

from wsss.tracking.location import default_uri, ui_command
from wsss.tracking.sender import sync
from wsss.tracking.spool import TrackingError
from wsss.tracking.tracker import TrackedRun, Tracker, open_tracker

__all__ = ["TrackedRun", "Tracker", "TrackingError", "default_uri", "open_tracker", "sync", "ui_command"]
