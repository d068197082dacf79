"""Sends what earlier runs could not send: the `wsss track sync` command."""

from __future__ import annotations

from pathlib import Path

from wsss.tracking.location import bound_requests, check_uri, default_uri, uri_with_credentials
from wsss.tracking.redact import redact_text
from wsss.tracking.sender import Outbox, TrackingReport, report, send_until
from wsss.tracking.spool import ROOT, RecordedRun, Spool, TrackingError, now_ms


def sync(home: Path, uri: str | None = None, wait_seconds: float = 60.0) -> TrackingReport:
    """Send the leftovers of all runs under `home`; calling it again changes nothing.

    Runs that a process is writing right now are left to it. A run whose process died is marked KILLED (it is
    RUNNING again when it is continued).

    Args:
        uri: send to this address instead of the recorded one; a run that was sent elsewhere is sent whole.
        wait_seconds: how long to keep trying when a server does not answer; every run gets one attempt.

    Raises:
        TrackingError: the address cannot work.
    """
    home = Path(home).absolute()
    bound_requests()
    if uri is not None:
        check_uri(uri)
    outboxes: list[Outbox] = []
    needs_credentials: list[Outbox] = []
    try:
        for record in sorted((home / "runs").glob("*/tracking/events.jsonl")):
            run_id = record.parent.parent.name
            try:
                spool = Spool(home, run_id)
            except TrackingError:
                # Its own process sends it.
                continue
            _mark_killed(spool)
            recorded = _recorded_uri(spool)
            address = uri or uri_with_credentials(recorded)
            outbox = Outbox(spool, home, address or recorded)
            if outbox.cursor.offset >= spool.size:
                spool.close()
            elif address is None:
                outbox.reason = (
                    f"the credentials of {recorded} are not recorded: set MLFLOW_TRACKING_URI or pass --tracking"
                )
                needs_credentials.append(outbox)
            else:
                outboxes.append(outbox)
        send_until(outboxes, wait_seconds)
        everything = outboxes + needs_credentials
        addresses = dict.fromkeys(outbox.address for outbox in everything)
        return report(everything, ", ".join(addresses) or redact_text(uri or default_uri(home)), home)
    finally:
        for outbox in outboxes + needs_credentials:
            outbox.spool.close()


def _recorded_uri(spool: Spool) -> str:
    runs: list[RecordedRun] = [spool.recorded(ROOT), *spool.runs.values()]
    return next((run.uri for run in runs if run.uri), default_uri(spool.folder.parents[2]))


def _mark_killed(spool: Spool) -> None:
    for key, run in list(spool.runs.items()):
        if run.uri and run.status is None:
            spool.append({"kind": "finish", "run": key, "time": now_ms(), "status": "KILLED"})
