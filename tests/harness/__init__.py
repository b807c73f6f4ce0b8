"""What the stories stand on: a real proxy, real workers, real sockets."""
