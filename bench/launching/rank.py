"""A rank of a benchmark: record its start time as a file in a folder, then sleep for the second argument's seconds.

With a third argument it writes that many lines per second instead of sleeping.
"""

import os
import sys
import time

began = time.time()
folder, seconds, lines = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0
with open(os.path.join(folder, f"{began:.6f}-{os.getpid()}"), "w"):
    pass
while time.time() < began + seconds:
    for number in range(lines // 10):
        print(f"step {number} loss {number / 7:.4f} at {time.time():.3f}", flush=False)
    sys.stdout.flush()
    time.sleep(0.1 if lines else seconds)
