"""Schemathesis against the control API of a running cluster, bounded in examples and time.

Takes the context file of `quorate up`. Every request goes to a loopback address. Prints `N passed, M failed`.
"""

import json
import os
import subprocess
import sys
import tempfile
import urllib.request

EXAMPLES = 15
SECONDS = 90


def leader(context, token):
    """Base URL of the replica that answers for the cluster."""
    for base in context["control"]:
        request = urllib.request.Request(f"{base}/v1/status", headers={"Authorization": f"Bearer {token}"})
        try:
            with urllib.request.urlopen(request, timeout=10):
                return base
        except urllib.error.HTTPError:
            continue
    sys.exit("no control replica answers as leader")


def refused(base, token, body, status):
    """Posts a body that is none; the answer is an error with a code, and the API answers on."""
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{base}/v1/proposals", data=body, headers=headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            sys.exit(f"{len(body)} bytes that are no proposal were taken: {answer.status}")
    except urllib.error.HTTPError as error:
        said = json.load(error)
        assert error.code == status and said["code"], (error.code, said)
    except urllib.error.URLError as error:
        # Whoever is refused in the middle of 100 MB may be cut off before the answer is read.
        assert isinstance(error.reason, (BrokenPipeError, ConnectionResetError)), error


def main():
    path = sys.argv[1]
    with open(path) as file:
        context = json.load(file)
    with open(os.path.join(os.path.dirname(path), context["token_file"])) as file:
        token = file.read().strip()
    base = leader(context, token)
    assert base.startswith("http://127.0.0.1:"), base
    refused(base, token, b'{"reason": "\xff\xfe"}', 400)
    refused(base, token, b'"' + b"x" * 100_000_000 + b'"', 413)
    assert leader(context, token), "the API answers on"
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
        failed = 0 if subprocess.run(command, timeout=SECONDS * 4, cwd=folder).returncode == 0 else 1
    print(f"{1 - failed} passed, {failed} failed")
    sys.exit(failed)


if __name__ == "__main__":
    main()
