"""The embedded backend: jobs run on this machine, each run under a driver process of its own.

::

    service     the daemon's side: prepares, launches, signals and follows
    prepare     a helper process that checks a document and makes the run's folder
    launch      how the daemon starts both
    driver      the process of a driver: one per run, in the background
      engine      what it does: starts jobs, sees them end, asks for room
      scribe      how it writes the log
      document    the workflow, job by job
      jobs        what runs now: steps, walltime, ending
      commands    a job of the document as something to execute (pure)
      ledger      who has which cores and how much memory of the machine
      processes   facts of /proc: is that still the process that was started?
    events      the words of a run's log
      history     what a log says of a run (pure, a fold)
      observe     what a log says to the daemon (pure)
    follow      reading the logs of many runs
    outputs     what jobs printed
    layout      where everything lies
    fields      what becomes of each field of a job

Nothing but files passes between service and drivers, so a daemon that ends, is upgraded or is killed disturbs no run.
"""
