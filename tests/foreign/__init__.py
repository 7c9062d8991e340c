"""The tests of kombu and Celery that concern pools, run on ours: `make test-kombus`. See CONTRIBUTING.md."""
