"""The same random operations on `kombu.pools` and on ours, for `test_same_as_kombu.py`."""
