"""Parses the compose file as far as that goes without an engine: YAML, commands that exist, addresses that agree."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

FOLDER = Path(__file__).parent


def main():
    quorate = sys.argv[1]
    services = yaml.safe_load((FOLDER / "compose.yml").read_text())["services"]
    assert len(services) == 7, sorted(services)
    addresses = [network["ipv4_address"] for s in services.values() for network in s["networks"].values()]
    assert len(set(addresses)) == len(addresses), addresses
    for name, service in services.items():
        words = service["command"].split()
        help_text = subprocess.run([quorate, *words[:2], "--help"], capture_output=True, text=True, check=True).stdout
        for flag in (word for word in words if word.startswith("--")):
            assert re.search(rf"{flag}\b", help_text), f"{name}: `quorate {' '.join(words[:2])}` has no {flag}"
    print(f"{len(services)} passed, 0 failed")
    build()


def build():
    """Builds the image, where an engine can start and the images below it can be had."""
    text = (FOLDER / "Dockerfile").read_text()
    below = [name for name in re.findall(r"^FROM (\S+)", text, re.MULTILINE)]
    for command in [["docker", "info"], *(["docker", "pull", "--quiet", name] for name in below)]:
        if shutil.which("docker") is None or subprocess.run(command, capture_output=True).returncode != 0:
            print(f"the image was not built: `{' '.join(command)}` does not work here")
            return
    subprocess.run(["docker", "build", "--file", FOLDER / "Dockerfile", FOLDER.parent], check=True)
    print("the image was built")


if __name__ == "__main__":
    main()
