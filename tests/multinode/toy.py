"""Stands for the main job where only its process counts: it says steps and does as its last word says."""

import signal
import socket
import sys
import time

MANNER = sys.argv[-1]

if MANNER == "broken" and socket.gethostname() == "h1":
    raise ImportError("cannot import name 'Field' from 'pydantic'")
for number in (signal.SIGTERM, signal.SIGINT):
    # As a rank does that is inside of a collective which never ends.
    signal.signal(number, signal.SIG_IGN)
for step in range(1, 2000):
    print(f"step {step}/", flush=True)
    time.sleep(0.1)
