"""What RabbitMQ does with exchanges, queues and messages, as plain Python: no sockets, no threads, no kombu."""
