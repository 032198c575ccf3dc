"""Schemathesis against the control API of a running cluster, bounded in examples and time.

Takes the context file of `quorate up`. Every request goes to a loopback address. Prints `N passed, M failed`.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request

EXAMPLES = 15
SECONDS = 90
# How long until some replica leads, on a machine that does much else.
PATIENCE = 600
# Another leader may be elected at any moment, and then the replica that is being tried refuses everything, as it must.
TRIES = 10


def leader(context, token):
    """Base URL of the replica that answers for the cluster."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for base in context["control"]:
            request = urllib.request.Request(f"{base}/v1/status", headers={"Authorization": f"Bearer {token}"})
            try:
                with urllib.request.urlopen(request, timeout=60):
                    return base
            except OSError:
                continue
        time.sleep(0.1)
    sys.exit("no control replica answers as leader")


def elections(context):
    """How often any replica became leader."""
    total = 0
    for base in context["control"]:
        with urllib.request.urlopen(f"{base}/metrics", timeout=60) as answer:
            lines = answer.read().decode().splitlines()
        total += sum(float(line.split()[1]) for line in lines if line.startswith("quorate_control_leader_changes_total "))
    assert total >= 1, "somebody leads"
    return total


def refused(base, token, body, status):
    """Posts a body that is none; the answer is an error with a code, and the API answers on."""
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{base}/v1/proposals", data=body, headers=headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            sys.exit(f"{len(body)} bytes that are no proposal were taken: {answer.status}")
    except urllib.error.HTTPError as error:
        said = json.load(error)
        assert error.code == status and said["code"], (error.code, said)
    except urllib.error.URLError as error:
        # Whoever is refused in the middle of 100 MB may be cut off before the answer is read.
        assert isinstance(error.reason, (BrokenPipeError, ConnectionResetError)), error


def holds(base, token):
    """Whether this replica refuses what is no request, and otherwise answers as its document says."""
    try:
        refused(base, token, b'{"reason": "\xff\xfe"}', 400)
        refused(base, token, b'"' + b"x" * 100_000_000 + b'"', 413)
    except AssertionError as error:
        print(f"refused otherwise: {error}", flush=True)
        return False
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"{base}/openapi.json",
        "--header", f"Authorization: Bearer {token}",
        "--checks", "not_a_server_error,status_code_conformance,content_type_conformance,"
                    "response_schema_conformance,negative_data_rejection,ignored_auth",
        "--phases", "examples,coverage,fuzzing", "--max-examples", str(EXAMPLES), "--max-time", str(SECONDS),
        "--seed", "1", "--workers", "1", "--suppress-health-check", "all", "--warnings", "off", "--no-color",
    ]
    # It keeps its own notes in the working directory.
    with tempfile.TemporaryDirectory() as folder:
        hooks = {"SCHEMATHESIS_HOOKS": "short_waits", "PYTHONPATH": os.path.dirname(os.path.abspath(__file__))}
        environment = {**os.environ, **hooks}
        return subprocess.run(command, timeout=PATIENCE + SECONDS * 4, cwd=folder, env=environment).returncode == 0


def main():
    path = sys.argv[1]
    with open(path) as file:
        context = json.load(file)
    with open(os.path.join(os.path.dirname(path), context["token_file"])) as file:
        token = file.read().strip()
    for _ in range(TRIES):
        base = leader(context, token)
        assert base.startswith("http://127.0.0.1:"), base
        before = elections(context)
        passed = holds(base, token)
        if passed or (leader(context, token) == base and elections(context) == before):
            break
        print("a leader was elected meanwhile: once more", flush=True)
    print(f"{int(passed)} passed, {int(not passed)} failed")
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
