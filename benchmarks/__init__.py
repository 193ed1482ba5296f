"""What bpsd costs, beside what it is compared with: ``python -m benchmarks`` (see ``docs/benchmarks.md``)."""
