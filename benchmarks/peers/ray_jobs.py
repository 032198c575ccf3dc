"""Ray as the peer of the job benchmark: a head node on loopback, asked by lines on standard input.

`first` submits one job and follows it to its first line; `tasks N` runs the program in N remote tasks. The
answer is a line with the seconds that it took, after the word `answer`.
"""

import subprocess
import sys
import time

import ray
from ray.job_submission import JobStatus, JobSubmissionClient

PROGRAM = "/usr/bin/seq"
PAUSE_SECONDS = 0.005
LIMIT_SECONDS = 300
ENDED = {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED}


@ray.remote(num_cpus=1)
def run():
    return subprocess.run([PROGRAM, "1", "0"], check=True).returncode


def first_line(client):
    began = time.monotonic()
    job = client.submit_job(entrypoint=f"{PROGRAM} 1 1")
    while "1" not in client.get_job_logs(job).splitlines():
        if time.monotonic() - began > LIMIT_SECONDS:
            raise TimeoutError(f"job {job} printed nothing: {client.get_job_status(job)}")
        time.sleep(PAUSE_SECONDS)
    seconds = time.monotonic() - began
    while client.get_job_status(job) not in ENDED:
        time.sleep(PAUSE_SECONDS)
    return seconds


def tasks(count):
    began = time.monotonic()
    ray.get([run.remote() for _ in range(count)])
    return time.monotonic() - began


def main():
    at_once = int(sys.argv[1])
    context = ray.init(num_cpus=at_once, include_dashboard=True, dashboard_host="127.0.0.1", log_to_driver=False)
    client = JobSubmissionClient(f"http://{context.dashboard_url}")
    tasks(at_once)
    print(f"answer ray {ray.__version__}", flush=True)
    for line in sys.stdin:
        word, *rest = line.split()
        seconds = first_line(client) if word == "first" else tasks(int(rest[0]))
        print(f"answer {seconds}", flush=True)


main()
