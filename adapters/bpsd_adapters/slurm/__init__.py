"""Slurm: bpsd keeps the order of jobs and submits what is ready, as arrays, here or over SSH.

::

    service - driver - engine       one engine per run: what was seen -> what to write, submit, end
        |        |        `- runstate, events, handover     the run's log: it alone says what was done
        |        |- runs             which runs are held, and their engines, asked one thing at a time
        |        |- watch, acts      asking, and what it cost; submitting, and what was cut off
        |        `- cluster          sbatch, squeue, sacct, scancel, scontrol through a transport
        |               `- scripts, parsing, states, verdicts, commands, options     text in, text out
        `- observe                  the log as observations for the daemon

A tick of the driver: one ``squeue`` for all runs, then what the wrappers of those jobs wrote that it does not show as
alive, then one ``sacct`` for those that neither knows; every engine folds that; then what is ready is submitted, an
array per label and resources.
"""
