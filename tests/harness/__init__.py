"""The test harness of the stories: a real proxy, real workers, real sockets."""
