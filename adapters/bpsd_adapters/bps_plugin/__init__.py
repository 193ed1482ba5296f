"""Any plugin of ``bps`` (a ``BaseWmsService`` class) as a backend: it runs in processes of its own."""
