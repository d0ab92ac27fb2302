"""The commands. Each module is one command; what they share is in `common`.

As process 1 of a container a command gets no SIGTERM until it has a handler for it: the kernel drops it. A pod that is
ended while it starts would come up all the same, take work and data, and be killed with them when its time is over. So
there is a handler before anything slow is imported; `common.run` puts its own in its place.
"""

import os
import signal
import threading

if (
    os.getpid() == 1
    and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    and threading.current_thread() is threading.main_thread()
):
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
