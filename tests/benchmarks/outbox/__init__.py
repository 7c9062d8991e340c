"""What the outbox costs beside other outboxes for Django: `make bench-outbox`.

`servers.py` starts RabbitMQ and PostgreSQL, `contenders.py` has the outboxes, `relay_process.py` is a relay of one of
them. Each module `…_case.py` measures one thing; `goals.py` is what is to be reached, `report.py` writes it down for
`docs/explanation/outbox-performance.md`.
"""
