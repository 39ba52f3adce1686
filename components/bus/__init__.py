"""The only package that knows NATS: messages in and out, the embedded server, and a process's membership in its graph."""
