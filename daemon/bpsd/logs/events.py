"""The vocabulary of the logs. Each name is a fact that somebody may search for or count: add here, never improvise.

A name says what happened, not what is being tried; the fields say to what. ``..._failed`` was foreseen and is dealt
with; ``..._broke`` is a mistake in bpsd or an adapter and comes with a traceback.
"""

from __future__ import annotations

__all__ = ["LogEvent"]

from enum import StrEnum


class LogEvent(StrEnum):
    """What a log line can be about."""

    # -- the daemon --
    DAEMON_STARTED = "daemon_started"  # version, mode, socket, state_dir
    DAEMON_STOPPING = "daemon_stopping"  # reason
    DAEMON_STOPPED = "daemon_stopped"
    CONFIG_RELOADED = "config_reloaded"
    RESTART_NEEDED = "restart_needed"  # settings: what the last reload could not apply; all else is in force
    NAMES_UNKNOWN = "names_unknown"  # names, retry_s: users and groups of the configuration that nobody has now
    CONFIG_WRONG = "config_wrong"  # error: a key of the configuration, and what cannot work on this host
    CONFIG_REFUSED = "config_refused"  # a new configuration has mistakes; the old one goes on
    WATCHDOG_NOT_FED = "watchdog_not_fed"  # stuck: backends whose tasks keep no deadline; systemd restarts the daemon
    OPEN_FILES_LIMITED = "open_files_limited"  # limit, wanted: the hard limit is too low for limits.clients
    LIBRARY_MESSAGE = "library_message"  # logger, text: what a library said through `logging`, or a warning
    LOG_LINES_DROPPED = "log_lines_dropped"  # count: nobody read stderr

    # -- the socket --
    SOCKET_OPENED = "socket_opened"  # path, activated
    SOCKET_CLOSED = "socket_closed"  # path
    SOCKET_STALE_REMOVED = "socket_stale_removed"  # path: its owner was gone
    SOCKET_BOUND_AGAIN = "socket_bound_again"  # path, set_aside: it had been removed or replaced
    SOCKET_UNREACHABLE = "socket_unreachable"  # path, error: it was removed or replaced; binding is tried again
    SOCKET_TAKEN_AWAY = "socket_taken_away"  # path: at the end it was no longer ours
    ACCEPT_FAILED = "accept_failed"  # error: no file descriptors or memory for another client, for now
    CLIENT_REFUSED = "client_refused"  # uid, pid, code, reason, left_out (lines like this, under a flood)
    CLIENT_DROPPED = "client_dropped"  # connection, uid, pid, code, reason
    MESSAGE_REFUSED = "message_refused"  # connection, code: it was no request
    REQUEST_DENIED = "request_denied"  # method, uid, pid, user, reason: somebody may not do that
    REQUEST_BROKE = "request_broke"  # method, uid, pid, user, reference (the client was told it), left_out
    REQUEST_SLOW = "request_slow"  # method, uid, pid, user, held_s: it used much time of the event loop
    CLOSE_CALLBACK_BROKE = "close_callback_broke"  # connection

    # -- backends and polls --
    BACKEND_FAILED = "backend_failed"  # backend: its adapter gave up; no other is touched
    PING_BROKE = "ping_broke"  # backend
    POLL_BROKE = "poll_broke"  # backend
    POLL_FAILED = "poll_failed"  # backend, failures, error
    SLURM_LOOK_FAILED = "slurm_look_failed"  # backend, failures, error: nothing follows from it
    SLURM_RUN_FAILED = "slurm_run_failed"  # backend, run, error: the others go on
    SLURM_NOT_SUBMITTED = "slurm_not_submitted"  # backend, run, outcome, error: the jobs are not lost
    RUN_QUARANTINED = "run_quarantined"  # backend, run, error, failures, retry_s: the other runs go on
    RUN_RECOVERED = "run_recovered"  # backend, run: it left the quarantine
    RUN_LOGS_DAMAGED = "run_logs_damaged"  # errors, count: what the local adapter could not read
    LEFTOVER_PROCESSES_LIVE = "leftover_processes_live"  # run, error: a killed driver's; the next poll tries again
    SLICE_NOT_LIMITED = "slice_not_limited"  # slice, error, advice: the units of the users' jobs share no limit

    # -- plugins of bps --
    PLUGIN_STARTED = "plugin_started"  # purpose, host, pid, python: a control worker is up
    PLUGIN_LOADED = "plugin_loaded"  # purpose, host, pid, python, release, implements: it has imported the plugin
    PLUGIN_ENDED = "plugin_ended"  # purpose, reason, stderr
    PLUGIN_SAID = "plugin_said"  # purpose, stream, text: a line that the plugin printed or logged
    PLUGIN_CALL_FAILED = "plugin_call_failed"  # call, error, trace

    # -- commands and storage --
    COMMAND_ACCEPTED = "command_accepted"  # command, verb, backend, run, uid, pid, user
    COMMAND_BROKE = "command_broke"  # command
    JOURNAL_WRITE_FAILED = "journal_write_failed"  # error, retry_s
    STORE_EMPTIED = "store_emptied"  # reason, set_aside: it is filled again from the backends
    JOURNAL_RESTORED = "journal_restored"  # reason, restored_from, set_aside: no commands until it is accepted
    JOURNAL_OLDER = "journal_older"  # reason: than the history; no commands until it is accepted
    RUN_UNREADABLE = "run_unreadable"  # run: its record in the store is damaged; it is seen anew
    INFO_FILE_NOT_WRITTEN = "info_file_not_written"  # backend, error: a file for other tools; the run is none the worse
    METRICS_FAILED = "metrics_failed"  # what (a file or an address), error: it is tried again
    NOTIFICATION_FAILED = "notification_failed"  # route, causes, error: it is tried again
    NOTIFICATION_DROPPED = "notification_dropped"  # route, causes, error: it was tried for too long
    CLOCK_JUMPED = "clock_jumped"  # seconds: nothing is pruned by a clock that was set
    UPKEEP_FAILED = "upkeep_failed"  # what, error
