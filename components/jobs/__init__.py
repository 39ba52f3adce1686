"""Chat jobs: a durable queue that pushes them over WebSocket, the worker that runs them, the supervisor of worker and engine."""
