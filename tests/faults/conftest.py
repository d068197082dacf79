"""Fixtures of other parts that faults need: an object store in memory, an MLflow server."""

from tests.store.conftest import moto_environment
from tests.tracking.conftest import server, session_server, template_database

__all__ = ["moto_environment", "server", "session_server", "template_database"]
