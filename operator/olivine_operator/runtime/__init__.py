"""The operator's edges: API server, cache, work queue, metrics, status endpoint. They hold no decisions about jobs."""
