"""Every method of the protocol with what carries it out and the right that it needs."""

from __future__ import annotations

__all__ = ["method_table"]

from collections.abc import Mapping

from bpsd.api.admin import Admin
from bpsd.api.bulk import Bulk
from bpsd.api.deps import Deps
from bpsd.api.health import Health
from bpsd.api.holds import Holds
from bpsd.api.muting import Muting
from bpsd.api.orders import Orders
from bpsd.api.reads import Reads
from bpsd.api.uploads import Uploads
from bpsd.api.watches import Watches
from bpsd.server import MethodSpec


def method_table(deps: Deps) -> Mapping[str, MethodSpec]:
    """All methods (the keys are `bpsd.wire.METHODS`)."""
    uploads = Uploads(deps)
    reads, orders, bulk = Reads(deps), Orders(deps, uploads), Bulk(deps, uploads)
    watches, health, muting = Watches(deps), Health(deps), Muting(deps)
    return {
        "ping": MethodSpec(reads.ping, "none"),
        "version": MethodSpec(reads.version, "read"),
        "backends": MethodSpec(reads.backends, "read"),
        "backend.ping": MethodSpec(reads.backend_ping, "read"),
        "list": MethodSpec(reads.list_runs, "read"),
        "report": MethodSpec(reads.report, "read"),
        "status": MethodSpec(reads.status, "read"),
        "jobs": MethodSpec(reads.jobs, "read"),
        "holds": MethodSpec(Holds(deps).holds, "read"),
        "logs": MethodSpec(bulk.logs, "read"),
        "events": MethodSpec(watches.events, "read"),
        "watch": MethodSpec(watches.watch, "read"),
        "unwatch": MethodSpec(watches.unwatch, "read"),
        "blob.put": MethodSpec(bulk.put, "submit"),
        "validate": MethodSpec(bulk.validate, "submit"),
        # What has begun to be accepted is accepted, also if the client goes away meanwhile.
        "submit": MethodSpec(orders.submit, "submit", finish=True),
        # Whether the run is the caller's own, or anybody's to command, is seen when it is found.
        "cancel": MethodSpec(orders.cancel, "read", finish=True),
        "restart": MethodSpec(orders.restart, "read", finish=True),
        "hold": MethodSpec(orders.hold, "read", finish=True),
        "release": MethodSpec(orders.release, "read", finish=True),
        "mute": MethodSpec(muting.mute, "read", finish=True),
        "unmute": MethodSpec(muting.unmute, "read", finish=True),
        "commands": MethodSpec(orders.commands, "read"),
        "commands.wait": MethodSpec(orders.wait, "read"),
        "commands.resolve": MethodSpec(orders.resolve, "read", finish=True),
        "refresh": MethodSpec(reads.refresh, "read"),
        "health": MethodSpec(health.health, "read"),
        "admin": MethodSpec(Admin(deps).admin, "admin", finish=True),
    }
