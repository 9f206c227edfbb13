"""Nova SDS011 particulate sensor, polled over UART (Nova SDS011 control protocol).

Reply to the query command, 10 bytes, little-endian:

    AA C0  LL HH  LL HH  II II  CC  AB
           pm2.5  pm10   id     low byte of the sum of the six bytes before
           0.1 µg/m³
"""

from gateway.driver import BadChecksum, BadFrame, Frame, SerialDriver
from gateway.reading import PM2_5, PM10, Values


class Driver(SerialDriver):
    model = "Nova SDS011"
    quantities = (PM2_5, PM10)
    request = bytes.fromhex("AA B4 04 00 00 00 00 00 00 00 00 00 00 00 00 FF FF 02 AB")
    frame = Frame(start=b"\xaa\xc0", length=10)

    def decode(self, frame: bytes) -> Values:
        if len(frame) != 10 or frame[9] != 0xAB:
            raise BadFrame(f"does not end in AB after 10 bytes: {frame.hex(' ')}")
        if sum(frame[2:8]) & 0xFF != frame[8]:
            raise BadChecksum(f"sum {sum(frame[2:8]) & 0xFF:02x}, the frame says {frame[8]:02x}")
        pm2_5 = int.from_bytes(frame[2:4], "little")
        pm10 = int.from_bytes(frame[4:6], "little")
        return {PM2_5: pm2_5 / 10, PM10: pm10 / 10}
