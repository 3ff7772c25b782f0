"""Plain HTTP for the cluster's own eyes: metrics, liveness, readiness."""

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from olivine_operator.runtime.metrics import Metrics

# None where all is well, else a sentence.
Check = Callable[[], str | None]


async def serve_health(address: str, port: int, *, metrics: Metrics, alive: Check, ready: Check) -> web.AppRunner:
    """Listens; the caller cleans the runner up."""

    async def show_metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def healthz(_: web.Request) -> web.Response:
        return _judge(alive())

    async def readyz(_: web.Request) -> web.Response:
        return _judge(ready())

    app = web.Application()
    app.router.add_get("/metrics", show_metrics)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, address, port).start()
    return runner


def _judge(trouble: str | None) -> web.Response:
    return web.Response(status=200 if trouble is None else 503, text=f"{trouble or 'ok'}\n")
