"""A slow and lossy link in user space, for kernels without netem.

router ── routes packets into the device `slow` ──▶ here: late, or lost ──▶ back to the router

python scripts/slow_link.py DELAY_S LOSS
"""

from __future__ import annotations

import fcntl
import os
import random
import select
import struct
import sys
import time
from collections import deque

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
MAX_PACKET_BYTES = 65_536


def open_device(name: str) -> int:
    """The file of a new network device, which carries whole IP packets."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return device


def relay(device: int, delay_s: float, loss: float) -> None:
    """For ever: what comes is sent back `delay_s` later, in its order."""
    chance = random.Random(0)
    late: deque[tuple[float, bytes]] = deque()
    while True:
        wait_s = max(0.0, late[0][0] - time.monotonic()) if late else None
        if select.select([device], [], [], wait_s)[0]:
            packet = os.read(device, MAX_PACKET_BYTES)
            if chance.random() >= loss:
                late.append((time.monotonic() + delay_s, packet))
        while late and late[0][0] <= time.monotonic():
            os.write(device, late.popleft()[1])


def main() -> None:
    os.setpriority(os.PRIO_PROCESS, 0, 0)  # it must not add a delay of its own
    device = open_device("slow")
    print("up", flush=True)
    relay(device, float(sys.argv[1]), float(sys.argv[2]))


if __name__ == "__main__":
    main()
