"""The fake over HTTP, so that the real client speaks to it."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from tests.fake_ec2 import actions, protocol
from tests.fake_ec2.protocol import AwsError
from tests.fake_ec2.world import LOST, FakeEc2


@asynccontextmanager
async def serving(world: FakeEc2) -> AsyncIterator[str]:
    """Its URL, as `endpoint` of the settings."""

    async def handle(request: web.Request) -> web.StreamResponse:
        target = request.headers.get("X-Amz-Target", "")
        if target:
            service, action = "sqs", target.partition(".")[2]
            said = await request.json()
        else:
            form = {key: str(value) for key, value in (await request.post()).items()}
            service, action = protocol.VERSIONS[form["Version"]], form["Action"]
            said = protocol.read(service, action, form)
        try:
            answer = world.call(f"{service}:{action}", said, actions.ACTIONS[action])
        except AwsError as error:
            if error.code == LOST:
                assert request.transport is not None
                request.transport.close()
                return web.Response()
            return web.Response(
                status=error.status, text=protocol.refusal(service, error), content_type="text/xml"
            )
        if action == "ReceiveMessage" and not answer["Messages"]:
            await asyncio.sleep(0.02)  # a queue holds such an answer back
        if service == "sqs":
            return web.Response(text=json.dumps(answer), content_type="application/x-amz-json-1.0")
        return web.Response(text=protocol.answer(service, action, answer), content_type="text/xml")

    app = web.Application(client_max_size=1 << 20)
    app.router.add_post("/{any:.*}", handle)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    try:
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()
