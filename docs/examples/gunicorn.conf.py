"""How both applications are served: loaded once, then forked into two workers of four threads."""

workers = 2
threads = 4
preload_app = True
graceful_timeout = 3
# gunicorn's control socket has one place for all of a user's servers.
control_socket_disable = True
