"""Publish without waiting: ``Pools.submit`` and ``Pools.apublish``. Imported at their first use."""
