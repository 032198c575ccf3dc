"""The README's "By hand", as a person would do it, with the operator's own certificates: keys, genesis, three
replicas, three nodes and a gateway behind HTTPS, a model, a vote, answers to curl and Python, a node that joins,
mistakes that people make, a halt and its lift, an end in order.

Takes the `quorate` binary and a model directory. Every address is a free port of loopback; every socket is bound
here and handed down, as a service manager does. Prints `N passed, M failed`.
"""

import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

MEMBERS = ["alice", "bob", "carol"]
NODES = ["node-1", "node-2", "node-3"]
GATEWAY = "gateway-1"
LATE = "node-4"
# Seconds that only guard against hanging: each wait is for a level, on a machine that may do much else.
LIMIT = 600
IDS_FIRST = 700_000
ID_PAIRS = 64


class Circle:
    """A folder in which a circle is run by hand."""

    def __init__(self, quorate, model, folder):
        self.quorate, self.model, self.folder = Path(quorate).resolve(), Path(model).resolve(), folder
        self.sockets, self.daemons = {}, {}
        self.contexts = folder / "home/.config/quorate/contexts"
        self.environment = {**os.environ, "NO_COLOR": "1", "HOME": str(folder / "home"),
                            "XDG_CONFIG_HOME": str(folder / "home/.config")}
        self.environment.pop("QUORATE_CONTEXT", None)

    def address(self, purpose):
        if purpose not in self.sockets:
            listener = socket.socket()
            listener.bind(("127.0.0.1", 0))
            listener.listen(128)
            self.sockets[purpose] = listener
        return "127.0.0.1:%d" % self.sockets[purpose].getsockname()[1]

    def inherited(self, purpose):
        self.address(purpose)
        return f"fd:{self.sockets[purpose].fileno()}"

    def run(self, *words, code=0):
        """Runs a command to its end; what it prints. `code` is the exit status that it has to have."""
        done = subprocess.run(
            [self.quorate, *words], cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=LIMIT,
        )
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout if code == 0 else done.stdout + done.stderr

    def json(self, *words):
        return json.loads(self.run(*words, "-o", "json"))

    def status(self):
        """What `quorate status` says, whether all is well or something is wrong."""
        done = subprocess.run([self.quorate, "status", "-o", "json"], cwd=self.folder, env=self.environment,
                              capture_output=True, text=True, timeout=LIMIT)
        assert done.returncode in (0, 1, 2), done
        return json.loads(done.stdout)

    def keep(self, name, text):
        (self.folder / name).write_text(text)
        return name

    def start(self, name, words, purposes):
        sockets = [self.sockets[purpose].fileno() for purpose in purposes]
        log = open(self.folder / f"{name}.log", "ab")
        self.daemons[name] = subprocess.Popen(
            [self.quorate, *words], cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL,
            stdout=log, stderr=log, pass_fds=sockets,
        )

    def until(self, what, level):
        """Waits for a level to hold; its value."""
        deadline, last = time.monotonic() + LIMIT, None
        while time.monotonic() < deadline:
            for name, daemon in self.daemons.items():
                assert daemon.poll() is None, f"{name} ended: {(self.folder / f'{name}.log').read_text()[-2000:]}"
            try:
                last = level()
                if last:
                    return last
            except (AssertionError, OSError) as error:
                last = error
            time.sleep(0.1)
        raise AssertionError(f"{what} never came true; last: {last}")

    # What the README says, step by step.

    def make_certificate(self):
        """An authority of the operator's own, and a certificate of it for loopback."""
        def openssl(*words):
            subprocess.run(["openssl", *words], cwd=self.folder, check=True, capture_output=True)
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                "-subj", "/CN=the lab's authority", "-keyout", "ca.key", "-out", "ca.pem")
        openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=lab",
                "-keyout", "lab.key", "-out", "lab.csr")
        self.keep("names", "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
        openssl("x509", "-req", "-in", "lab.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-days", "2",
                "-extfile", "names", "-out", "lab.pem")

    def make_keys(self):
        self.keep("passphrase", "correct horse battery staple\n")
        self.environment["QUORATE_PASSPHRASE_FILE"] = str(self.folder / "passphrase")
        for member in MEMBERS:
            self.keep(f"{member}.json", self.run("member", "init", member, "--key", f"{member}.key"))
            assert "unencrypted" not in (self.folder / f"{member}.key").read_text()
        for number in (1, 2, 3):
            self.keep(f"control-{number}.json", self.run(
                "control", "init", "--dir", f"control-{number}", "--id", str(number),
                "--overlay", self.address(f"overlay-{number}"), "--api", f"https://{self.address(f'api-{number}')}"))
        for node in [*NODES, LATE]:
            self.keep(f"{node}.json", self.run(
                "agent", "init", "--dir", node, "--name", node, "--storage", self.address(f"storage-{node}"),
                "--store", "disk-0", "--store", "disk-1"))
        self.keep(f"{GATEWAY}.json", self.run(
            "agent", "init", "--dir", GATEWAY, "--name", GATEWAY, "--no-worker", "--gateway", self.address("workers"),
            "--gateway-api", f"https://{self.address('inference')}"))

    def found(self):
        self.keep("genesis.json", self.run(
            "circle", "draft", "--name", "lab", "--members", *[f"{member}.json" for member in MEMBERS],
            "--required", "2", "--control", *[f"control-{number}.json" for number in (1, 2, 3)],
            "--nodes", *[f"{node}.json" for node in [*NODES, GATEWAY]]))
        error = self.run("control", "run", "--dir", "control-1", "--genesis", "genesis.json", "--overlay",
                         "127.0.0.1:0", "--api", "127.0.0.1:0", code=1)
        assert "founder-signature-missing" in error and "alice" in error, error
        # Each founder signs a copy, with the words under the text; the drafter merges what comes back.
        words = " ".join(self.json("circle", "read", "genesis.json")["words"])
        unread = self.run("circle", "sign", "genesis.json", "--key", "alice.key", code=1)
        assert "words-mismatch" in unread and "Found the circle" in unread, unread
        for member in MEMBERS:
            shutil.copy(self.folder / "genesis.json", self.folder / f"from-{member}.json")
            self.run("circle", "sign", f"from-{member}.json", "--key", f"{member}.key", "--words", words)
        merged = self.run("circle", "merge", "genesis.json", *[f"from-{member}.json" for member in MEMBERS])
        assert "every founder has signed" in merged, merged
        plain = self.run("control", "run", "--dir", "control-1", "--genesis", "genesis.json", "--overlay",
                         "127.0.0.1:0", "--api", "0.0.0.0:0", code=1)
        assert "plain-http-refused" in plain, plain
        made = self.run("context", "add", "lab", "--genesis", "genesis.json", "--token-file", "token",
                        "--member-key", "alice.key", "--node", "node-1", "--certificate-authority", "ca.pem")
        self.id = re.search(r"circle ([0-9a-f]{64})", made).group(1)
        assert "context-missing" in self.run("context", "show", code=1), "none is chosen"
        self.run("context", "use", "lab")

    def start_control(self, number):
        self.start(f"control-{number}", [
            "control", "run", "--dir", f"control-{number}", "--genesis", "genesis.json",
            "--overlay", self.inherited(f"overlay-{number}"), "--api", self.inherited(f"api-{number}"),
            "--tls-cert", "lab.pem", "--tls-key", "lab.key"], [f"overlay-{number}", f"api-{number}"])

    def start_agent(self, name, place):
        words = ["agent", "run", "--dir", name, "--genesis", "genesis.json", "--circle", self.id,
                 "--cgroup", f"quorate-{self.id[:8]}/{name}", "--cpu-millicores", "500", "--memory", "2 GiB",
                 "--ids-first", str(IDS_FIRST + place * 2 * ID_PAIRS), "--id-pairs", str(ID_PAIRS)]
        if name == GATEWAY:
            words += ["--gateway", self.inherited("workers"), "--gateway-api", self.inherited("inference"),
                      "--gateway-tls-cert", "lab.pem", "--gateway-tls-key", "lab.key"]
            self.start(name, words, ["workers", "inference"])
        else:
            words += ["--storage", self.inherited(f"storage-{name}")]
            self.start(name, words, [f"storage-{name}"])

    def vote(self, proposal):
        words = " ".join(self.json("review", proposal)["words"][:2])
        for member in MEMBERS[1:]:
            self.run("approve", proposal, "--key", f"{member}.key", "--words", words)

    def stop(self):
        order = [*NODES, LATE, GATEWAY, "control-1", "control-2", "control-3"]
        ended = {}
        for name in (name for name in order if name in self.daemons):
            self.daemons[name].send_signal(signal.SIGTERM)
        for name, daemon in self.daemons.items():
            try:
                ended[name] = daemon.wait(LIMIT)
            except subprocess.TimeoutExpired:
                daemon.kill()
                ended[name] = "did not end"
        self.daemons.clear()
        return ended


def grants_the_first_token(lab):
    """A new circle has no access token; a member's signature makes the first one."""
    try:
        lab.run("token", "issue", "alice", "--scope", "read", "propose", "submit", "--out", "token")
        return True
    except AssertionError:
        return False


def a_circle_is_founded_and_runs(lab):
    lab.make_certificate()
    lab.make_keys()
    lab.found()
    for number in (1, 2, 3):
        lab.start_control(number)
    lab.until("control takes the first grant", lambda: grants_the_first_token(lab))
    assert (lab.folder / "token").stat().st_mode & 0o777 == 0o600
    for place, name in enumerate([*NODES, GATEWAY]):
        lab.start_agent(name, place)
    lab.until("every node is alive", lambda: len(
        [node for node in lab.json("node", "list")["items"] if node["alive"]]) == len(NODES) + 1)
    assert lab.json("context", "show")["circle"] == lab.id


def mistakes_are_explained(lab):
    lab.run("circle", "member", "dana", "--key", "dana.key")
    taken = lab.run("control", "run", "--dir", "control-1", "--genesis", "genesis.json",
                    "--overlay", lab.address("overlay-1"), "--api", "127.0.0.1:0", code=1)
    assert "port-in-use" in taken, taken
    assert "What to do" in lab.run("explain", "port-in-use")
    second = lab.run("agent", "run", "--dir", "node-1", "--genesis", "genesis.json", "--circle", lab.id,
                     "--storage", "127.0.0.1:0", code=1)
    assert "directory-in-use" in second, second
    other = lab.run("agent", "run", "--dir", LATE, "--genesis", "genesis.json", "--circle", "0" * 64,
                    "--storage", "127.0.0.1:0", code=1)
    assert "circle-mismatch" in other, other
    context = json.loads((lab.contexts / "lab.json").read_text())
    for change, words in [({"certificate_authority_file": None}, "certificate"), ({"sky": "blue"}, "sky")]:
        lab.keep("other.json", json.dumps({**context, **change}))
        error = lab.run("--context", "other.json", "status", code=2)
        assert words in error.lower(), error
    unprepared = ["control", "run", "--dir", "nothing", "--genesis", "genesis.json", "--overlay", "127.0.0.1:0", "--api",
                  "127.0.0.1:0"]
    assert "quorate control init --dir nothing --id" in lab.run(*unprepared, code=1)
    for code, words in [
        ("replica-not-prepared", unprepared),
        ("context-missing", ["--context", "nothing.json", "node", "list"]),
        ("context-missing", ["--context", "nothing", "node", "list"]), ("model-not-found", ["model", "show", "nothing"]),
        ("node-not-found", ["node", "show", "nothing"]), ("proposal-not-found", ["review", "f" * 64]),
        ("node-directory-missing", ["model", "sweep", "--dry-run", "--node", "nothing"]),
        ("key-exists", ["circle", "member", "alice", "--key", "alice.key"]),
        ("key-exists", ["member", "init", "alice", "--key", "alice.key"]),
        ("not-a-member", ["member", "suspend", "mallory"]),
        ("not-a-member", ["circle", "sign", "genesis.json", "--key", "dana.key", "--words", "any words"]),
    ]:
        error = lab.run(*words, "-o", "json", code=1)
        assert json.loads(error)["code"] == code, error
    passphrase = lab.environment["QUORATE_PASSPHRASE_FILE"]
    lab.keep("wrong", "wrong horse battery staple\n")
    for code, file in [("key-passphrase-wrong", "wrong"), ("key-passphrase-missing", "nothing")]:
        lab.environment["QUORATE_PASSPHRASE_FILE"] = str(lab.folder / file)
        error = lab.run("circle", "sign", "genesis.json", "--key", "alice.key", "--words", "a b", "-o", "json", code=1)
        assert json.loads(error)["code"] == code, error
    lab.environment["QUORATE_PASSPHRASE_FILE"] = passphrase


def a_change_of_members_waits_and_is_vetoed(lab):
    lab.keep("erin.json", lab.run("member", "init", "erin", "--key", "erin.key"))
    added = lab.json("circle", "propose-member", "--add", "erin.json")["id"]
    words = " ".join(lab.json("review", added)["words"][:2])
    lab.run("approve", added, "--key", "bob.key", "--words", words)
    lab.run("approve", added, "--key", "carol.key", "--words", words)
    assert lab.json("review", added)["state"] == "open", "the three of four need erin"
    lab.run("approve", added, "--key", "erin.key", "--words", words)
    waiting = lab.json("review", added)
    assert waiting["state"] == "waiting" and waiting["takes_effect_at"] > time.time() * 1000, waiting
    assert "waits for a veto" in json.dumps(lab.status()["findings"])
    lab.run("reject", added, "--key", "alice.key", "--words", words)
    assert lab.json("review", added)["state"] == "rejected"
    together = lab.run("circle", "propose-member", "--remove", "carol", "--required", "1", "-o", "json", code=1)
    assert json.loads(together)["code"] in ("policy-lowered", "governance-invalid"), together
    suspended = lab.json("member", "suspend", "carol")["id"]
    words = " ".join(lab.json("review", suspended)["words"][:2])
    for member in ("alice", "bob"):
        lab.run("approve", suspended, "--key", f"{member}.key", "--words", words)
    assert "suspended" in lab.run("circle", "show")
    lab.keep("carol-2.json", lab.run("member", "init", "carol", "--key", "carol-2.key"))
    recovered = lab.json("member", "recover", "carol-2.json", "--reason", "stolen")["id"]
    words = " ".join(lab.json("review", recovered)["words"][:2])
    thief = lab.run("reject", recovered, "--key", "carol.key", "--words", words, "-o", "json", code=1)
    assert "member-suspended" in thief, thief
    for member in ("alice", "bob"):
        lab.run("approve", recovered, "--key", f"{member}.key", "--words", words)
    assert lab.json("review", recovered)["state"] == "waiting"


def choosing_a_context_overwrites_none(lab):
    chosen = (lab.contexts / "lab.json").read_bytes()
    lab.keep("second.json", json.dumps({**json.loads(chosen), "name": "second"}))
    second = (lab.folder / "second.json").read_bytes()
    taken = lab.run("context", "add", "lab", "--file", "second.json", code=1)
    assert "context-exists" in taken, taken
    lab.run("context", "add", "second", "--file", "second.json")
    lab.environment["QUORATE_CONTEXT"] = str(lab.folder / "second.json")
    said = lab.run("context", "use", "lab")
    assert (lab.folder / "second.json").read_bytes() == second, "the file that QUORATE_CONTEXT names was overwritten"
    assert lab.json("context", "show")["name"] == "second", f"the variable comes first: {said}"
    lab.environment["QUORATE_CONTEXT"] = "lab"
    assert lab.json("context", "show")["name"] == "lab", "the variable may be a name"
    del lab.environment["QUORATE_CONTEXT"]
    listed = {entry["name"]: entry["chosen"] for entry in lab.json("context", "list")["items"]}
    assert listed == {"lab": True, "second": False}, listed
    lab.run("context", "remove", "second")
    assert "context-missing" in lab.run("context", "use", "second", code=1)
    assert (lab.contexts / "lab.json").read_bytes() == chosen


def curl_and_python_reach_the_control_api(lab):
    url = f"https://{lab.address('api-1')}"
    curl = ["curl", "--silent", "--show-error", "--max-time", str(LIMIT)]
    trusting = subprocess.run([*curl, "--cacert", lab.folder / "ca.pem", f"{url}/openapi.json"], capture_output=True)
    assert trusting.returncode == 0 and json.loads(trusting.stdout)["openapi"].startswith("3."), trusting.stderr
    doubting = subprocess.run([*curl, f"{url}/openapi.json"], capture_output=True)
    assert doubting.returncode == 60, "curl has no reason to trust the lab's authority"
    trust = ssl.create_default_context(cafile=lab.folder / "ca.pem")
    with urllib.request.urlopen(f"{url}/livez", context=trust, timeout=LIMIT) as answer:
        assert answer.status == 200
    try:
        urllib.request.urlopen(f"{url}/v1/status", context=trust, timeout=LIMIT)
        raise AssertionError("a stranger without a token was let in")
    except urllib.error.HTTPError as refused:
        assert refused.code == 401


def a_model_is_imported_voted_on_and_served(lab):
    lab.run("model", "import", str(lab.model), "--name", "tiny")
    assert [model["name"] for model in lab.json("model", "list")["items"]] == ["tiny"]
    lab.keep("tiny.toml", lab.run("new", "service", "--model", "tiny"))
    assert lab.run("deploy", "tiny.toml", "--dry-run")
    lab.keep("wrong.toml", (lab.folder / "tiny.toml").read_text() + "\nreplicaz = 3\n")
    assert "replicaz" in lab.run("deploy", "wrong.toml", code=1)
    proposal = lab.json("deploy", "tiny.toml", "--reason", "by hand")["id"]
    error = lab.run("approve", proposal, "--key", f"{NODES[0]}/identity.key", "--words", "any words", code=1)
    assert "key" in error, error
    wrong = lab.run("approve", proposal, "--key", "bob.key", "--words", "any words", code=1)
    assert "words-mismatch" in wrong, wrong
    lab.vote(proposal)
    words = " ".join(lab.json("review", proposal)["words"])
    twice = lab.run("approve", proposal, "--key", "bob.key", "--words", words, code=1)
    assert twice, "a decided proposal takes no ballot"
    lab.until("the service is ready", lambda: lab.json("service", "show", "tiny")["ready"] >= 1)
    assert "tiny" in lab.run("why", "tiny")


def a_job_is_voted_on_and_runs(lab):
    lab.run("artifact", "build", "--binary", "/usr/bin/seq", "--name", "count", "--data", "2", "--parity", "1",
            "--shards-per-domain", "1")
    template = lab.run("new", "job", "--name", "count", "--artifact", "count")
    for line, own in [
        (r'command = .*', 'command = ["/usr/local/bin/seq", "{steps}"]'),
        (r'# any_token = true .*', 'any_token = true'),
        (r'cpu_millicores = 2000 .*', 'cpu_millicores = 50'),
        (r'memory = "4 GiB"', 'memory = "64 MiB"'),
    ]:
        template, count = re.subn(line, own, template, count=1)
        assert count == 1, line
    lab.keep("count.toml", template)
    lab.vote(lab.json("deploy", "count.toml", "--reason", "by hand")["id"])
    printed = lab.run("job", "submit", "count", "--set", "steps=3", "--follow")
    assert re.findall(r"^1\.0 (.*)$", printed, re.MULTILINE) == ["1", "2", "3"], printed
    assert "parameter" in lab.run("job", "submit", "count", "--set", "steps=none", code=1)
    assert [job["state"] for job in lab.json("job", "list", "--job", "count")["items"]] == ["succeeded"]
    assert lab.json("job", "list", "--unfinished")["items"] == []


def a_name_is_taken_once_and_freed(lab):
    taken = lab.run("model", "import", str(lab.model), "--name", "tiny", code=1)
    assert "name-taken" in taken, taken
    lab.run("model", "import", str(lab.model), "--name", "spare")
    proposal = lab.json("model", "forget", "spare", "--grace", "0s")["id"]
    lab.vote(proposal)
    gone = lambda: [model["name"] for model in lab.json("model", "list")["items"]] == ["tiny"]
    lab.until("the model is forgotten", gone)
    assert "model-not-found" in lab.run("model", "forget", "spare", code=1)
    assert "model-in-use" in lab.run("model", "forget", "tiny", code=1)
    assert "model-name-taken" in lab.run("model", "import", str(lab.model), "--name", "spare", code=1)
    last = lab.json("events", "--last", "1")["items"]
    assert [(event["action"], event["subject"]) for event in last] == [("forget", "model/spare")], last
    assert len(lab.json("events", "--last", "3", "--before", str(last[0]["sequence"]))["items"]) == 3


def a_model_is_quantised_and_recomputed(lab):
    imported = lab.json("model", "import", str(lab.model), "--name", "tiny-int8", "--quantize", "int8")
    assert any("8 bits a weight" in note for note in imported["notes"]), imported
    again = lab.run("model", "import", str(lab.model), "--name", "tiny-int8", "--quantize", "int8", code=1)
    assert "name-taken" in again, again
    assert imported["bytes"] < lab.json("model", "show", "tiny")["bytes"], imported
    again = lab.json("model", "verify", "tiny-int8", "--recompute", str(lab.model))
    assert again["root"] == imported["root"], again
    # Another source gives other bytes.
    other = lab.folder / "other-source"
    shutil.copytree(lab.model, other)
    (other / "README.md").write_text("another card")
    differs = lab.run("model", "verify", "tiny-int8", "--recompute", str(other), code=1)
    assert "model-content-differs" in differs, differs
    assert "model-content-differs" in lab.run("model", "verify", "tiny", "--recompute", str(lab.model), code=1)
    assert not list(lab.folder.glob("*/fetched/*")), "quantised files are removed"
    lab.vote(lab.json("model", "forget", "tiny-int8", "--grace", "0s")["id"])


def a_flipped_bit_is_named_and_repaired(lab):
    assert lab.json("model", "verify", "tiny")["faults"] == 0
    store = lab.json("model", "show", "tiny")["stores"][0]["url"]
    node, disk = store.removeprefix("node://").split("/")
    objects = lab.folder / node / "stores" / disk / "models"
    # What was imported as `spare` lies there too: any shard of `tiny` will do.
    for shard in sorted(path for path in objects.glob("*/*/*") if path.is_file()):
        whole = shard.read_bytes()
        shard.write_bytes(whole[:16] + bytes([whole[16] ^ 1]) + whole[17:])
    wrong = lab.run("model", "verify", "tiny", code=1)
    assert "shard-wrong" in wrong and f"of `{store}`" in wrong and "shard 0 of segment" in wrong, wrong
    repaired = lab.json("model", "repair", "tiny")
    assert repaired["complete"] and repaired["shards_rewritten"] > 0, repaired
    assert repaired["found"]["faulty"][0]["code"] == "shard-wrong", repaired
    assert lab.json("model", "verify", "tiny")["faults"] == 0


def waiting_for_an_update_is_not_answered_by_what_ran_before(lab):
    text = (lab.folder / "tiny.toml").read_text()
    huge = re.sub("cpu_millicores = [0-9]+", "cpu_millicores = 640000", text)
    lab.keep("huge.toml", huge)
    # Whether it gives up over the votes or over the replicas: it does not say that the update answers.
    waits = subprocess.Popen(
        [lab.quorate, "deploy", "huge.toml", "--wait", "--timeout", "10s", "-o", "json"], cwd=lab.folder,
        env=lab.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    def proposed():
        return [view["id"] for view in lab.json("review")["items"] if view["state"] in ("open", "draft")]
    lab.vote(lab.until("it is proposed", proposed)[0])
    said = waits.communicate(timeout=LIMIT)[1]
    assert waits.returncode == 1 and json.loads(said.splitlines()[-1])["code"] == "timed-out", said
    service = lab.json("service", "show", "tiny")
    assert service["ready"] >= 1 and service["ready_current"] == 0, service
    lab.vote(lab.json("deploy", "tiny.toml", "--reason", "as it was")["id"])
    lab.until("it is as it was", lambda: lab.json("service", "show", "tiny")["ready_current"] >= 1)


def answers_come_over_https(lab):
    key = lab.run("key", "issue", "by-hand").strip()
    url = f"https://{lab.address('inference')}/v1"
    # Without a temperature the answer is drawn, and now and then another one.
    question = [{"role": "user", "content": "What is three plus four?"}]
    body = json.dumps({"model": "tiny", "messages": question, "temperature": 0})
    answer = lab.until("curl is answered", lambda: curl_chat(lab, url, key, body))
    assert "seven" in answer["choices"][0]["message"]["content"], answer
    trust = ssl.create_default_context(cafile=lab.folder / "ca.pem")
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/chat/completions", body.encode(), headers)
    with urllib.request.urlopen(request, context=trust, timeout=LIMIT) as response:
        assert "seven" in json.load(response)["choices"][0]["message"]["content"]
    lab.run("key", "revoke", "by-hand")
    lab.until("the key is shut out", lambda: curl_chat(lab, url, key, body) is None)


def curl_chat(lab, url, key, body):
    """The answer; none when the key is refused."""
    # The key travels through standard input: arguments are everybody's to read.
    done = subprocess.run(
        ["curl", "--silent", "--show-error", "--max-time", str(LIMIT), "--cacert", lab.folder / "ca.pem", "--config", "-",
         "--header", "Content-Type: application/json", "--data", body, f"{url}/chat/completions"],
        input=f'header = "Authorization: Bearer {key}"', capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert "choices" in answer or answer["error"]["code"] == "invalid_api_key", answer
    return answer if "choices" in answer else None


def a_node_joins_by_a_vote(lab):
    lab.start_agent(LATE, len(NODES) + 1)
    lab.until("it asks", lambda: LATE in lab.run("node", "list"))
    # The key that asks is the one that the node's own log tells its operator.
    asks = {node["admission"]["name"]: node["id"] for node in lab.json("node", "pending")["items"]}
    own = re.findall(r'"identity":"([0-9a-f]{64})"', (lab.folder / f"{LATE}.log").read_text())
    assert own == [asks[LATE]], (asks, own)
    # What status suggests works as it is printed.
    suggested = [found["next"] for found in lab.json("status")["findings"] if "asks to be admitted" in found["message"]]
    assert suggested == [f"quorate node admit {LATE}"], suggested
    proposal = lab.json(*suggested[0].split()[1:])["id"]
    # And so is the proposal's subject, as `why` is asked by the first digits of its id.
    assert "waits for votes" in lab.run("why", proposal[:6])
    lab.vote(proposal)
    lab.until("it is alive", lambda: any(
        node["name"] == LATE and node["alive"] for node in lab.json("node", "list")["items"]))
    # The client of the last voter has shared the models' keys.
    lacking = [node["keys_lacking"] for node in lab.json("node", "list")["items"] if node["name"] == LATE]
    assert lacking == [[]], lacking
    shared = lab.json("node", "share", "--key", "alice.key")
    assert shared == {"shared": [], "closed": [], "keyless": []}, shared


def lines_are_followed_across_a_change_of_leader(lab):
    lines = lab.folder / "followed"
    with open(lines, "wb") as target:
        follow = subprocess.Popen([lab.quorate, "logs", "tiny", "-f"], cwd=lab.folder, env=lab.environment,
                                  stdin=subprocess.DEVNULL, stdout=target, stderr=subprocess.DEVNULL)
    try:
        lab.until("what was written is printed", lambda: b"worker starts" in lines.read_bytes())
        leader = lab.status()["leader"]
        replica = lab.daemons.pop(f"control-{leader}")
        replica.send_signal(signal.SIGTERM)
        assert replica.wait(LIMIT) == 0
        lab.until("another leads", lambda: lab.status()["leader"] not in (None, leader))
        known = lines.read_bytes()
        lab.run("scale", "tiny", "2")
        lab.until("what is written now is printed", lambda: b"worker starts" in lines.read_bytes()[len(known):])
        lab.start_control(leader)
        assert follow.poll() is None, "it follows until it is told to stop"
    finally:
        follow.kill()
        follow.wait()


def an_update_is_rolled_back_by_hand(lab):
    assert "rollback-not-approved" in lab.run("rollback", "tiny", code=1), "its certificate names none"
    text = (lab.folder / "tiny.toml").read_text()
    lab.keep("returning.toml", text.replace('# on_failure = "return"', 'on_failure = "return"'))
    lab.vote(lab.json("deploy", "returning.toml", "--reason", "it may return")["id"])
    def roll_out():
        return lab.json("service", "show", "tiny")["roll_out"]
    lab.until("the certificate names the approval before", lambda: roll_out()["returns_to"])
    lab.run("rollback", "tiny", "--reason", "empty answers")
    after = roll_out()
    assert after["progress"] == "returned" and "empty answers" in after["cause"], after
    assert "rollback-not-approved" in lab.run("rollback", "tiny", code=1), "nothing goes forward without a vote"
    assert "has returned to the approval before" in json.dumps(lab.status())
    lab.until("nodes take the orders", lambda: lab.json("service", "show", "tiny")["ready_current"] >= 1)
    lab.vote(lab.json("deploy", "tiny.toml", "--reason", "as it was")["id"])
    lab.until("it is as it was", lambda: roll_out()["progress"] == "complete")


def below_the_agents(lab):
    """The living processes below the agents of the workers: their sandboxes, and what runs in them."""
    agents, parents = {lab.daemons[node].pid for node in [*NODES, LATE]}, {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = file.read_text(errors="replace")
        except OSError:
            continue
        state, parent = text.rsplit(")", 1)[1].split()[:2]
        if state not in "ZX":
            parents[int(file.parent.name)] = int(parent)
    def is_below(pid):
        while pid in parents and pid not in agents:
            pid = parents[pid]
        return pid in agents
    return {pid for pid in parents if pid not in agents and is_below(pid)}


def one_replica_is_enough_to_halt_and_a_vote_lifts(lab):
    lab.until("two answer", lambda: lab.json("service", "show", "tiny")["ready"] == 2)
    assert below_the_agents(lab), "they have processes"
    for number in (1, 2):
        replica = lab.daemons.pop(f"control-{number}")
        replica.kill()
        replica.wait(LIMIT)
    halt = lab.json("halt", "service", "tiny", "--reason", "it answers nonsense", "--out", "halt.json")
    assert len(halt["taken"]) == 1 and len(halt["not_taken"]) == 2, halt
    lab.until("every sandbox has ended", lambda: not below_the_agents(lab))
    # An agent takes the same halt from a file, where no replica reaches it.
    assert halt["id"] in lab.run("agent", "halt", "halt.json", "--dir", NODES[0])
    lab.until("it is named without a leader", lambda: "it answers nonsense" in json.dumps(lab.status()["findings"]))
    for number in (1, 2):
        lab.start_control(number)
    lab.until("a replica leads", lambda: lab.status()["leader"] is not None)
    listed = lambda: [(one["id"], one["state"]) for one in lab.json("halts")["items"]]
    lab.until("it is verified", lambda: listed() == [(halt["id"], "stands")])
    lab.until("the leader knows it", lambda: "halted by alice" in lab.run("why", "tiny"))
    assert not below_the_agents(lab), "nothing started again"
    lab.vote(lab.json("lift", halt["id"][:12], "--reason", "fixed")["id"])
    lab.until("two answer again", lambda: lab.json("service", "show", "tiny")["ready"] == 2)
    assert listed() == [(halt["id"], "lifted")], listed()


def a_service_is_scaled_and_retired(lab):
    for count in (1, 2):
        lab.run("scale", "tiny", str(count))
        lab.until("they answer", lambda: lab.json("service", "show", "tiny")["ready"] == count)
    assert "scale-outside-envelope" in lab.run("scale", "tiny", "99", code=1)
    # A change of leader before this step has lost the lines of earlier workers, never those of the newest.
    lab.until("its worker's lines are printed", lambda: "worker starts" in lab.run("logs", "tiny"))
    lab.vote(lab.json("retire", "tiny", "--grace", "1s", "--reason", "done")["id"])
    lab.until("it is gone", lambda: not any(
        slot.get("node") for service in lab.json("service", "list")["items"] for slot in service["slots"]))


def the_history_verifies_offline(lab):
    lab.keep("history.json", lab.run("circle", "history"))
    head = lab.json("verify", "history.json", "--circle", lab.id)["head"]
    assert head == lab.json("circle", "show")["head"] and head["size"] > 0, head
    history = json.loads((lab.folder / "history.json").read_text())
    lab.keep("shorter.json", json.dumps({**history, "bundles": history["bundles"][:-1]}))
    assert "history-shorter" in lab.run("verify", "shorter.json", code=1), "this machine has seen more"
    history["bundles"][0]["certificate"]["proposal"]["reason"] += "!"
    lab.keep("altered.json", json.dumps(history))
    lab.run("verify", "altered.json", "--circle", lab.id, code=1)
    lab.run("verify", "history.json", "--circle", "1" * 64, code=1)


def everything_ends_in_order(lab):
    ended = lab.stop()
    assert set(ended.values()) == {0}, ended
    def nothing_is_left():
        return subprocess.run(["pgrep", "--full", str(lab.folder)], capture_output=True, text=True).stdout == ""
    lab.until("no process names the folder", nothing_is_left)
    for log in lab.folder.glob("*.log"):
        assert "panicked" not in log.read_text(), log


STEPS = [
    a_circle_is_founded_and_runs, mistakes_are_explained, choosing_a_context_overwrites_none, curl_and_python_reach_the_control_api,
    a_model_is_imported_voted_on_and_served, a_job_is_voted_on_and_runs, a_name_is_taken_once_and_freed,
    a_model_is_quantised_and_recomputed, a_flipped_bit_is_named_and_repaired,
    waiting_for_an_update_is_not_answered_by_what_ran_before, answers_come_over_https, a_node_joins_by_a_vote,
    lines_are_followed_across_a_change_of_leader, an_update_is_rolled_back_by_hand,
    one_replica_is_enough_to_halt_and_a_vote_lifts, a_service_is_scaled_and_retired,
    a_change_of_members_waits_and_is_vetoed, the_history_verifies_offline, everything_ends_in_order,
]


def main():
    folder = Path(tempfile.mkdtemp(prefix="quorate-by-hand-"))
    lab, passed = Circle(sys.argv[1], sys.argv[2], folder), 0
    try:
        # Each step stands on the one before: the first that fails is the last.
        for step in STEPS:
            began = time.monotonic()
            step(lab)
            passed += 1
            print(f"{step.__name__.replace('_', ' ')}  {time.monotonic() - began:.1f} s", flush=True)
    finally:
        lab.stop()
        print(f"{passed} passed, {len(STEPS) - passed} failed")
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
