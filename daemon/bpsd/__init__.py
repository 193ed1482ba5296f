"""bpsd: one daemon between people and their workload management systems.

The package imports nothing on its own, so that ``bpsctl`` starts at once; see ``docs/architecture.md`` for the layers.
"""

__version__ = "0.1.0"
