"""AMQP by py-amqp: the transport, its connection and channels, confirms, and the fast path of a publish."""
