"""The embedded backend: jobs run on this machine, each run under a driver process of its own.

::

    service     the daemon's side: prepares, launches, signals and follows
    prepare     a helper process that checks a document and makes the run's folder
    driver      a process per run: starts jobs, sees them end, writes the log
      jobs        what runs now: steps, walltime, ending
      commands    a job of the document as something to execute (pure)
      ledger      who has which cores and how much memory of the machine
      processes   facts of /proc: is that still the process that was started?
    events      the words of a run's log
      history     what a log says of a run (pure, a fold)
      observe     what a log says to the daemon (pure)
    layout      where everything lies

Nothing but files passes between service and drivers, so a daemon that ends, is upgraded or is killed disturbs no run.
"""
