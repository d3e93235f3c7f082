"""A cell's process that behaves as the backend's name says, on the real channel: for tests of what waits for it.

Each slice is noted in the file named by SLICES, one line each, so that a test sees who had a turn when.
"""

import os
import signal
import sys
import time

from fastervit_trt.benchmarks.sweep.channel import Channel, Job

_ACCURACY = {"columns": {"images": 2, "top1": 0.5, "top1_low": 0.1, "top1_high": 0.9}, "right": [1, 0], "note": ""}
_FACTS = {
    "artifact": "model.onnx",
    "artifact_sha256": "ab" * 32,
    "file_bytes": 1000,
    "device": "a CPU",
    "device_kind": "cpu",
    "compute_capability": "",
    "clock": "host",
    "speed_is_meaningful": True,
    "note": "",
}


def main() -> None:
    channel = Channel()
    job = Job.from_record(channel.receive())
    backend, notes = job.cell.backend, os.environ["SLICES"]

    def note(what: str) -> None:
        with open(notes, "a") as stream:  # noqa: PTH123
            stream.write(f"{backend} {what}\n")

    note("started")
    if backend == "dies-opening":
        os.kill(os.getpid(), signal.SIGKILL)
    if backend == "exits":
        print("out of luck", file=sys.stderr)
        sys.exit(3)
    if backend == "hangs":
        time.sleep(600)
    if backend == "refuses":
        channel.send(failed="no such thing here")
        return
    if not job.has_accuracy:
        note("accuracy")
        channel.send(progress="accuracy", done=1, total=2)
        channel.send(accuracy=_ACCURACY)
    channel.send(begin="warming up")
    channel.send(ready=_FACTS, context={"affinity": "0-1"}, warm_up_seconds=0.5)
    first = f"{backend} finished" not in open(notes).read()  # noqa: PTH123, SIM115
    turn = 0
    while channel.receive().get("slice") is not None:
        turn += 1
        if (backend == "dies-in-turn" and turn == 2) or (backend == "dies-again" and not first):
            os.kill(os.getpid(), signal.SIGSEGV)
        restless = backend in ("never-settles", "dies-again") or (backend == "settles-later" and first)
        time_s = 0.02 if restless and turn > 2 else 0.01
        throughput_s = 0.02 if backend == "drifts-with-streams" and turn > 2 else time_s
        note("slice")
        channel.send(slice={"latency": [time_s] * 3, "throughput": [throughput_s] * 3})
    note("finished")
    channel.send(finished={"other_load": 0.0, "peak_rss_mib": 10})


if __name__ == "__main__":
    main()
