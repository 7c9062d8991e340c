"""The broker's side of AMQP 0-9-1: frames, channels and connections. It encodes and decodes with py-amqp's own code."""
