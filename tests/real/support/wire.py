# wire.py A B: two network interfaces that are one cable with delay and loss, where the kernel has no netem.
# Prints `up` once both exist; whoever started it moves them into their namespaces. Lines on standard
# input set the cable: `DELAY_MS LOSS_PERCENT`. Ends with its input.
import fcntl
import heapq
import os
import random
import selectors
import struct
import sys
import time

TUNSETIFF, TUN_WITHOUT_HEADER = 0x400454CA, 0x1001
# A packet that finds so many on their way is dropped, as a router would.
QUEUE = 4096


def tun(name):
    fd = os.open('/dev/net/tun', os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack('16sH22x', name.encode(), TUN_WITHOUT_HEADER))
    return fd


def main():
    ends = [tun(name) for name in sys.argv[1:3]]
    delay, loss = 0.0, 0.0
    waiting, number = [], 0
    selector = selectors.DefaultSelector()
    for end, other in (ends, ends[::-1]):
        selector.register(end, selectors.EVENT_READ, other)
    os.set_blocking(0, False)
    selector.register(0, selectors.EVENT_READ, None)
    print('up', flush=True)
    while True:
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            _, _, end, packet = heapq.heappop(waiting)
            try:
                os.write(end, packet)
            except OSError:
                pass  # the interface is down, or its namespace is gone
        wait = waiting[0][0] - now if waiting else None
        for key, _ in selector.select(wait):
            if key.fd == 0:
                text = os.read(0, 4096)
                if not text:
                    return
                delay, loss = (float(word) for word in text.decode().splitlines()[-1].split())
                continue
            for _ in range(64):
                try:
                    packet = os.read(key.fd, 65536)
                except OSError:
                    break
                if len(waiting) < QUEUE and random.random() * 100 >= loss:
                    number += 1
                    heapq.heappush(waiting, (time.monotonic() + delay / 1000, number, key.data, packet))


main()
