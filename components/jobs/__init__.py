"""Chat jobs: a durable queue that pushes them over WebSocket, workers that run them, a supervisor of worker and engine."""
