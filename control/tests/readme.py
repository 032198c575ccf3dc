"""The README's "Use the cluster", pasted line by line into a terminal of 80 columns, beside a demonstration that stays up.

Takes the directory of `quorate up` and the directory of the binaries. The terminal stands in a folder where both are found
as in a clone, so that nothing of the text is changed but `ID`, which a person reads in the answer before. Leaves the cluster
as it was: what it deployed is retired by two more votes. Prints `N passed, M failed`.
"""

import json
import os
import pty
import re
import select
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COLUMNS, ROWS = 80, 24
# Only guards against hanging: a busy machine takes its time.
LIMIT = 300
PROMPT = re.compile(r"\[(\d+)\]walk> $")


class Terminal:
    """A shell behind a pseudo-terminal."""

    def __init__(self, folder):
        pid, self.descriptor = pty.fork()
        if pid == 0:
            os.chdir(folder)
            environment = {name: value for name, value in os.environ.items() if not name.startswith("QUORATE")}
            environment |= {"PS1": "[$?]walk> ", "TERM": "dumb", "COLUMNS": str(COLUMNS), "LINES": str(ROWS)}
            # The interpreter of this test has the packages that the README tells to install.
            environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
            os.execvpe("bash", ["bash", "--noprofile", "--norc", "-i"], environment)
        self.pid = pid
        self.read()
        # The shell's own line editor and echo would repeat what is pasted: what is tested is what commands print.
        os.write(self.descriptor, b"set +o emacs\n")
        self.read()
        os.write(self.descriptor, f"stty -echo cols {COLUMNS} rows {ROWS}\n".encode())
        self.read()

    def read(self):
        """What is printed until the shell asks for the next command; words that a command asks for are typed."""
        said, deadline = "", time.monotonic() + LIMIT
        while not PROMPT.search(said):
            assert time.monotonic() < deadline, f"no prompt within {LIMIT} s: {said[-2000:]}"
            if select.select([self.descriptor], [], [], 1)[0]:
                said += os.read(self.descriptor, 65536).decode(errors="replace").replace("\r", "")
                if said.endswith("type the first two of the six words: "):
                    words = re.findall(r"^words: ((?:[a-z]+ ?){6})$", said, re.MULTILINE)[-1].split()
                    os.write(self.descriptor, f"{words[0]} {words[1]}\n".encode())
                    said += "\n"
        return said

    def paste(self, line):
        """What a line prints. It has to succeed."""
        os.write(self.descriptor, line.encode() + b"\n")
        said = self.read()
        status = int(PROMPT.search(said).group(1))
        said = said[: PROMPT.search(said).start()]
        assert status == 0, f"`{line}` ended with {status}:\n{said}"
        wide = [text for text in said.splitlines() if re.match(r"\s*(next: )?quorate ", text) and len(text) > COLUMNS]
        assert not wide, f"`{line}` prints commands that a terminal breaks: {wide}"
        return said

    def close(self):
        os.kill(self.pid, signal.SIGHUP)
        os.waitpid(self.pid, 0)
        os.close(self.descriptor)


def blocks():
    """The lines of each block of commands of the section."""
    text = (ROOT / "README.md").read_text()
    section = text.split("\n## Use the cluster", 1)[1].split("\n## ", 1)[0]
    return [block.strip().splitlines() for block in section.split("```")[1::2]]


def until(what, level):
    """Waits for a level to hold."""
    deadline = time.monotonic() + LIMIT
    while not level():
        assert time.monotonic() < deadline, f"{what} never came true"
        time.sleep(0.2)


def walk(terminal):
    """Every line of the section; what each printed."""
    said, proposal = {}, "ID"
    for line in (line for block in blocks() for line in block):
        command = re.sub(r"\bID\b", proposal, line)
        said[line] = terminal.paste(command)
        if found := re.search(r"next: quorate approve ([0-9a-f]{8})\b", said[line]):
            proposal = found.group(1)
    return said, proposal


def answer_to(said, beginning):
    return next(text for line, text in said.items() if line.startswith(beginning))


def the_readme_works_as_pasted(folder):
    terminal = Terminal(folder)
    try:
        said, retirement = walk(terminal)
        assert "seven" in answer_to(said, "python3"), said
        dry_run = answer_to(said, "quorate deploy tiny-2.toml --dry-run")
        assert "starts with 1 replica" in dry_run and "must approve" in dry_run, dry_run
        assert "0 of 2 signed; 2 more signatures needed" in answer_to(said, "quorate deploy tiny-2.toml  "), said
        first = next(text for line, text in said.items() if line.startswith("quorate approve") and "member-a" in line)
        assert "1 of 2 signed; 1 more signature needed; member-b or member-c may sign" in first, first
        second = next(text for line, text in said.items() if line.startswith("quorate approve") and "member-b" in line)
        assert "quorum reached" in second, second
        # A proposal is explained by the first digits of its id, as the help says.
        assert "waits for votes" in terminal.paste(f"quorate why {retirement[:4]}"), retirement
        # The context holds wherever the terminal goes.
        terminal.paste("cd / && quorate status && cd - > /dev/null")
        for member in ["member-a", "member-b"]:
            terminal.paste(f"quorate approve {retirement} --key .quorate/demo/members/{member}.key")
        def gone():
            services = json.loads(terminal.paste("quorate service list -o json"))["items"]
            return all(service["name"] != "tiny-2" or not service["slots"] for service in services)
        until("what was retired is gone", gone)
    finally:
        terminal.close()


def main():
    demonstration, binaries = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    with tempfile.TemporaryDirectory(prefix="quorate-readme-") as folder:
        for place, target in [(".quorate/demo", demonstration), ("target/debug", binaries)]:
            link = Path(folder) / place
            link.parent.mkdir()
            link.symlink_to(target)
        the_readme_works_as_pasted(folder)
    print("1 passed, 0 failed")


if __name__ == "__main__":
    main()
