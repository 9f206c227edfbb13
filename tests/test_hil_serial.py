import asyncio

import serial

from gateway.reading import PM2_5, PM10
from hil.devices import Sds011
from hil.serialline import SerialLine

QUERY = bytes.fromhex("aab404000000000000000000000000ffff02ab")


def test_the_sds011_answers_its_query_with_the_frame_that_was_recorded():
    async def run() -> bytes:
        async with SerialLine(Sds011(fixed={PM2_5: 0.9, PM10: 0.9})) as line:
            return await asyncio.to_thread(ask, str(line.path))

    def ask(path: str) -> bytes:
        with serial.Serial(path, 9600, timeout=5) as port:
            port.write(QUERY)
            return port.read(10)

    assert asyncio.run(run()).hex() == "aac00900090058d943ab"
