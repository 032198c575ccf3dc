//! Tests of external signers: the reference signer, its attacks, and the process around them.
//!
//! The reference signer is this test program, which `/bin/sh` starts again with one test alone. It reads the
//! request as any author of a signer would: from the description in `docs/external-signer.md`.

use super::*;
use crate::member_key::save_external;
use human_chain::{CircleState, MemberSecret, check_proven, sign_as_founder, sign_halt, vote};
use model_store::EncryptionSecret;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use protocol::governance::{BALLOT_DOMAIN, ControlReplica, Genesis, Member, RENDERING_DOMAIN, SignedGenesis};
use protocol::halt::{Halt, HaltScope};
use protocol::{CircleId, Millis, PublicKey, ReplicaId};
use serde_json::{Value, json};
use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Stdio};

const TEST: &str = "member_key::signer::tests::acts_as_a_signer_when_started_as_one";
/// Variable that names the folder of the reference signer below.
const FOLDER: &str = "QUORATE_TEST_SIGNER";

/// A reference signer: a folder with a secret, a script that starts the signer, and its behaviour.
pub(crate) struct TestSigner(tempfile::TempDir);

impl TestSigner {
    /// Returns an honest signer with a key of its own.
    pub(crate) fn new() -> Self {
        let signer = Self(tempfile::tempdir().expect("temporary directory"));
        let secret = MemberSecret::generate(&host::random::random_bytes());
        fs::write(signer.path("secret"), secret.to_bytes().as_slice()).expect("written");
        signer.behave("honest");
        signer.script(&signer.start());
        signer
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Sets what the signer does from now on.
    pub(crate) fn behave(&self, behaviour: &str) {
        fs::write(self.path("behaviour"), behaviour).expect("written");
    }

    /// Returns a command of the shell that starts the signer: its answer goes to descriptor 3, since a test
    /// program writes to its standard output too.
    fn start(&self) -> String {
        let program = std::env::current_exe().expect("a path");
        let folder = self.0.path().display();
        format!("{FOLDER}='{folder}' '{}' --exact {TEST} --nocapture 3>&1 >/dev/null 2>&1", program.display())
    }

    /// Sets the script that the signer's command runs.
    fn script(&self, text: &str) {
        fs::write(self.path("signer.sh"), format!("cd '{}'\n{text}\n", self.0.path().display()))
            .expect("written");
    }

    /// Returns the command as a person types it.
    pub(crate) fn words(&self) -> Vec<String> {
        ["/bin/sh".into(), self.path("signer.sh").display().to_string(), "slot 2".into()].to_vec()
    }

    fn command(&self) -> SignerCommand {
        SignerCommand::new(&self.words()).expect("a command")
    }

    pub(crate) fn secret(&self) -> MemberSecret {
        MemberSecret::from_bytes(&fs::read(self.path("secret")).expect("read")).expect("a secret")
    }

    /// Enrols the signer as that of alice.
    pub(crate) fn enrol(&self) -> Result<(ExternalSigner, ProvenMember), Refusal> {
        ExternalSigner::enrol(alice(), self.command())
    }

    /// Returns the signer as the key file has it, regardless of the program.
    fn enrolled(&self) -> ExternalSigner {
        ExternalSigner { member: alice(), command: self.command(), keys: self.secret().public() }
    }
}

fn alice() -> MemberId {
    "alice".parse().expect("a name")
}

fn halt() -> Halt {
    let circle = CircleId(Digest::of(b"circle"));
    let reason = "it answers nonsense".to_string();
    let nonce = Digest::of(b"nonce");
    let signer = PublicKey([1; 32]);
    Halt { circle, member: alice(), signer, scope: HaltScope::Circle, reason, issued_at: Millis(1), nonce }
}

/// The reference signer; in any other way it is started in, it does nothing.
#[test]
fn acts_as_a_signer_when_started_as_one() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).expect("a request");
    let secret = MemberSecret::from_bytes(&fs::read(folder.join("secret")).expect("read")).expect("a secret");
    let behaviour = fs::read_to_string(folder.join("behaviour")).expect("read");
    let answer = answer(&secret, &behaviour, &serde_json::from_str(&text).expect("JSON"));
    let answer = json!({ "format": "quorate-signer/1", "answer": answer });
    fs::write("/dev/fd/3", answer.to_string()).expect("written");
}

fn answer(secret: &MemberSecret, behaviour: &str, request: &Value) -> Value {
    assert_eq!((&request["format"], &request["member"]), (&json!("quorate-signer/1"), &json!("alice")));
    let other = MemberSecret::generate(&[66; 64]);
    let holder = if behaviour == "another-key" { &other } else { secret };
    let operation = &request["operation"];
    if operation.get("keys").is_some() {
        return json!({ "keys": holder.public() });
    }
    if let Some(unwrap) = operation.get("unwrap") {
        let wrap: KeyWrap = serde_json::from_value(unwrap["wrap"].clone()).expect("a wrap");
        return shared_secrets(secret, behaviour, &wrap);
    }
    let sign = operation.get("sign").expect("one of three operations");
    let text = |name: &str| sign[name].as_str().expect("text").to_string();
    let (domain, statement) = (text("domain"), hex::decode(text("statement")).expect("digits"));
    let digest = Digest::of_domain(&domain, &statement);
    assert_eq!(sign["digest"], json!(digest), "the digest is of the statement");
    if domain == BALLOT_DOMAIN {
        let shown = Digest::of_domain(RENDERING_DOMAIN, text("text").as_bytes());
        let named = statement.windows(Digest::LENGTH).any(|bytes| bytes == shown.as_bytes());
        assert!(named, "the ballot names the text");
    }
    match behaviour {
        "another-statement" => json!({ "signature": holder.sign(&domain, b"all my models") }),
        "another-domain" => json!({ "signature": holder.sign("quorate/other/v1", &statement) }),
        "one-half" => {
            let mut signature = holder.sign(&domain, &statement);
            signature.ml_dsa = other.sign(&domain, &statement).ml_dsa;
            json!({ "signature": signature })
        }
        "refuses" => json!({ "refused": "no button was pressed\u{1b}[2J" }),
        "keys-only" => json!({ "keys": holder.public() }),
        _ => json!({ "signature": holder.sign(&domain, &statement) }),
    }
}

fn shared_secrets(secret: &MemberSecret, behaviour: &str, wrap: &KeyWrap) -> Value {
    let public = secret.public().encryption;
    let decryption = EncryptionSecret::from_parts(secret.x25519_secret(), secret.ml_kem_secret(), &public);
    let shared = decryption.expect("a key").shared_with(wrap).expect("a wrap");
    match behaviour {
        "other-secrets" => {
            json!({ "shared_secrets": { "x25519": "00".repeat(32), "ml_kem": "00".repeat(32) } })
        }
        "signatures-only" => json!({ "refused": "this device signs only" }),
        _ => json!({
            "shared_secrets": { "x25519": hex::encode(*shared.x25519), "ml_kem": hex::encode(*shared.ml_kem) }
        }),
    }
}

/// Returns the outcome of a signature as the code that refused it.
fn signed(signer: &ExternalSigner) -> Result<(), (ErrorCode, String)> {
    sign_halt(signer, halt()).map(drop).map_err(|refusal| (refusal.code, refusal.message))
}

#[test]
fn a_member_with_an_external_signer_founds_a_circle_votes_and_halts() {
    let test = TestSigner::new();
    let (signer, proven) = test.enrol().expect("an honest signer");
    assert_eq!(check_proven(&proven), Ok(()));
    assert_eq!(signer.check_opens_wraps(), Ok(()));
    let file = test.path("keys/alice.key");
    save_external(&signer, &file).expect("saved");
    let stored = fs::read_to_string(&file).expect("read");
    let secret = hex::encode(test.secret().to_bytes().as_slice());
    assert!(stored.contains("\"external\"") && !stored.contains(&secret[32..96]), "no secret is stored");
    let MemberKey { member, signer } = MemberKey::load(&file).expect("no passphrase is asked for");
    assert_eq!((&member, signer.public_keys()), (&proven.member.id, test.secret().public()));

    let members = vec![Member { id: alice(), keys: signer.public_keys() }];
    let control = ControlReplica {
        id: ReplicaId(1),
        key: MemberSecret::generate(&[1; 64]).public().ed25519,
        address: "127.0.0.1:1".into(),
        api: "http://127.0.0.1:1".into(),
    };
    let policy = crate::policy::simple_policy(&members, 1);
    let access = protocol::access::AccessEnvelope::standard([alice()]);
    let (name, founded_at, control) = ("lab".to_string(), Millis(1), vec![control]);
    let genesis = Genesis { name, founded_at, policy, members, control, nodes: vec![], access };
    let signature = sign_as_founder(&signer, &genesis).expect("signed");
    let genesis = SignedGenesis { genesis, signatures: [(alice(), signature)].into() };
    let state = CircleState::found(&genesis, None).expect("every founder signed");

    let change = protocol::governance::Change::Deploy(Box::new(crate::testing::manifest("bert")));
    let (now, nonce) = (Millis(1_795_264_910_000), Digest::of(b"nonce"));
    let proposal = human_chain::propose(&state, change, "run it".into(), now, now.plus(3_600_000), nonce);
    let (proposal, choice) = (proposal.expect("sound"), protocol::governance::Choice::Approve);
    let ballot = vote(&signer, alice(), state.head(), &proposal, choice, now).expect("signed");
    human_chain::certify(&state, &proposal, &[ballot]).expect("a quorum of one");
    let halt = Halt { circle: state.id(), signer: signer.public_keys().ed25519, ..halt() };
    let halt = sign_halt(&signer, halt).expect("signed");
    human_chain::check_halt(&state, halt).expect("a sound halt");
}

/// Attacks: a signer signs something else, or with another key, or one half alone.
#[test]
fn attack_a_signer_answers_with_another_signature() {
    let test = TestSigner::new();
    let signer = test.enrolled();
    for behaviour in ["another-statement", "another-domain", "another-key", "one-half", "keys-only"] {
        test.behave(behaviour);
        let (code, message) = signed(&signer).expect_err(behaviour);
        assert_eq!(code, error_code::SIGNER_INVALID, "{behaviour}: {message}");
        assert!(message.ends_with("nothing was signed"), "{message}");
    }
    // Positive control: without the verification the answer would be used, since it is a signature in the
    // right form. The same program is believed when it signs what it is given.
    test.behave("another-statement");
    let bytes = vec![1];
    let statement =
        Statement { domain: "quorate/other/v1", bytes, summary: "one".into(), text: String::new() };
    let operation = SignerOperation::of(&statement);
    let answer = signer.command.ask(&alice(), operation).expect("an answer");
    let AnswerBody::Signature(signature) = answer else { panic!("a signature in the right form") };
    assert!(
        signature_holds(&signer.keys, "quorate/other/v1", b"all my models", &signature),
        "by the member's own keys"
    );
    test.behave("honest");
    assert_eq!(signed(&signer), Ok(()));
}

/// Attack: a signer claims keys at enrolment that it does not hold.
#[test]
fn attack_a_signer_of_keys_that_it_does_not_hold_is_not_enrolled() {
    let test = TestSigner::new();
    let claimed = serde_json::to_string(&MemberSecret::generate(&[5; 64]).public()).expect("JSON");
    let keys = format!(r#"{{"format":"quorate-signer/1","answer":{{"keys":{claimed}}}}}"#);
    fs::write(test.path("keys.json"), keys).expect("written");
    test.script(&format!(
        "cat > request\nif grep -q '\"keys\":' request; then cat keys.json; else {} < request; fi",
        test.start()
    ));
    let refusal = test.enrol().map(drop).expect_err("no proof");
    assert_eq!(refusal.code, error_code::SIGNER_INVALID, "{refusal}");
    // Positive control: the program is enrolled with the keys that it holds.
    test.script(&test.start());
    test.enrol().map(drop).expect("enrolled");
}

#[test]
fn a_signer_that_refuses_says_why_and_acts_on_no_terminal() {
    let test = TestSigner::new();
    test.behave("refuses");
    let (code, message) = signed(&test.enrolled()).expect_err("refused");
    assert_eq!(code, error_code::SIGNER_FAILED);
    assert!(message.contains("refused: no button was pressed\\u{1b}[2J"), "{message}");
}

/// Attack: a signer never answers. The limit of time is a level here: the program runs.
#[test]
fn attack_a_signer_that_never_answers_is_ended() {
    let test = TestSigner::new();
    test.script("echo $$ > pid && mv pid started && exec sleep 1000000");
    let (command, started) = (test.command(), test.path("started"));
    let reason = process::exchange(&command, b"{}\n", || started.exists()).expect_err("no answer");
    assert!(reason.contains("did not answer in time"), "{reason}");
    let pid = fs::read_to_string(&started).expect("read").trim().parse().expect("a number");
    assert_eq!(kill(Pid::from_raw(pid), None), Err(nix::errno::Errno::ESRCH), "it was ended");
    // Positive control: a program that is slow is waited for while the limit is not reached.
    fs::remove_file(&started).expect("removed");
    test.script("echo $$ > pid && mv pid started\nuntil [ -e go ]; do sleep 0.01; done\necho late");
    let slow = process::exchange(&command, b"{}\n", || {
        if started.exists() {
            fs::write(test.path("go"), "").expect("written");
        }
        false
    });
    assert_eq!(slow.expect("an answer").as_slice(), b"late\n");
    // A program that answers and does not end is late too.
    test.script("exec 3>&1 && echo $$ > pid && mv pid closed && exec >&- 3>&- && exec sleep 1000000");
    let closed = test.path("closed");
    let reason = process::exchange(&command, b"{}\n", || closed.exists()).expect_err("it runs");
    assert!(reason.contains("in time"), "{reason}");
}

/// Attack: a signer writes without end.
#[test]
fn attack_a_signer_that_writes_without_end_is_ended() {
    let test = TestSigner::new();
    test.script("while :; do echo yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy; done");
    let (code, message) = signed(&test.enrolled()).expect_err("too much");
    assert_eq!(code, error_code::SIGNER_FAILED);
    assert!(message.contains("writes more than 32768 bytes"), "{message}");
    // Positive control: a reader without the limit gets many times as much, and memory is all that ends it.
    let mut child =
        Command::new("/bin/sh").arg(test.path("signer.sh")).stdout(Stdio::piped()).spawn().expect("started");
    let wanted = 20 * message::ANSWER_BYTES_MAX;
    let mut read = Vec::new();
    let stdout = child.stdout.take().expect("piped");
    stdout.take(wanted as u64).read_to_end(&mut read).expect("read");
    child.kill().and_then(|()| child.wait()).expect("ended");
    assert_eq!(read.len(), wanted);
}

#[test]
fn a_signer_that_fails_or_answers_in_no_form_is_refused() {
    let test = TestSigner::new();
    let signer = test.enrolled();
    let honest = test.start();
    for (script, expected) in [
        (format!("{honest}\nexit 3"), "ended with exit status: 3"),
        ("kill -9 $$".into(), "ended with signal: 9"),
        ("exit 0".into(), "its answer is none of quorate-signer/1 (line 1, column 0)"),
        ("echo '{}'".into(), "its answer is none of quorate-signer/1"),
        (
            r#"echo '{"format":"quorate-signer/2","answer":{"refused":""}}'"#.into(),
            "none of quorate-signer/1",
        ),
        (r#"echo '{"format":"quorate-signer/1","answer":{"refused":"","more":1}}'"#.into(), "none of"),
        (format!("{honest}\necho more"), "none of quorate-signer/1"),
    ] {
        test.script(&script);
        let (code, message) = signed(&signer).expect_err(&script);
        assert_eq!(code, error_code::SIGNER_FAILED, "{message}");
        assert!(message.contains(expected), "{message}");
    }
    // Positive control: the same answer, of a program that ends well.
    test.script(&format!("{honest}\nexit 0"));
    assert_eq!(signed(&signer), Ok(()));
}

/// Attack: a program of the same name in the current directory, in `PATH`, or writable by others.
#[test]
fn attack_a_planted_program_is_not_started() {
    let folder = tempfile::tempdir().expect("temporary directory");
    symlink("/bin/true", folder.path().join("signer")).expect("a link");
    for word in ["signer", "./signer", "../signer", ""] {
        let refusal = SignerCommand::new(&[word.into()]).expect_err(word);
        assert_eq!(refusal.code, error_code::SIGNER_FAILED);
        assert!(refusal.message.contains("its path is not absolute"), "{refusal}");
    }
    // Positive control: a relative path is searched for where the caller is.
    let found = Command::new("./signer").current_dir(folder.path()).status().expect("started");
    assert!(found.success());
    let command = |name: &str| SignerCommand::new(&[folder.path().join(name).display().to_string()]);
    let refused = |name: &str| {
        let outcome = process::exchange(&command(name).expect("absolute"), b"", || false);
        outcome.expect_err("not started")
    };
    let planted = folder.path().join("planted");
    fs::write(&planted, "#!/bin/sh\n").expect("written");
    for (mode, expected) in [(0o600, "is no program"), (0o722, "(mode 722)"), (0o775, "(mode 775)")] {
        fs::set_permissions(&planted, fs::Permissions::from_mode(mode)).expect("set");
        assert!(refused("planted").contains(expected), "{mode:o}");
    }
    assert!(refused("missing").contains("cannot be started"));
    assert!(refused("").contains("is no program"), "a directory");
    let long = vec!["/bin/true".to_string(), "x".repeat(ARGUMENT_BYTES_MAX + 1)];
    let many = vec!["/bin/true".to_string(); ARGUMENTS_MAX + 2];
    for words in [long, many] {
        assert_eq!(SignerCommand::new(&words).map_err(|r| r.code), Err(error_code::SIGNER_FAILED));
    }
}

/// The program gets its fixed arguments, the variables of the list, and the root as its directory.
#[test]
fn a_signer_gets_nothing_of_its_caller() {
    let test = TestSigner::new();
    let names = "env | sed 's/=.*//' > names";
    test.script(&format!("echo $OLDPWD > where; {names}; tr '\\0' '\\n' < /proc/$$/cmdline > words"));
    process::exchange(&test.command(), b"", || false).expect("it ends well");
    let lines = |name: &str| -> Vec<String> {
        fs::read_to_string(test.path(name)).expect("read").lines().map(String::from).collect()
    };
    assert_eq!(lines("where"), ["/"]);
    assert_eq!(lines("words"), test.words(), "no shell reads an argument");
    let given = |name: &String| process::ENVIRONMENT.contains(&name.as_str());
    let by_shell = |name: &String| ["PWD", "OLDPWD", "SHLVL", "_"].contains(&name.as_str());
    assert!(lines("names").iter().all(|name| given(name) || by_shell(name)), "{:?}", lines("names"));
    // Positive control: a child that is started plainly has every variable of its parent.
    let mut plain = Command::new("/bin/sh");
    plain.arg(test.path("signer.sh")).env("QUORATE_PASSPHRASE_FILE", "/dev/fd/9");
    assert!(plain.status().expect("started").success());
    assert!(lines("names").contains(&"QUORATE_PASSPHRASE_FILE".to_string()));
}

/// A request larger than a pipe reaches the program whole, also if it writes first.
#[test]
fn a_large_request_and_an_early_answer_do_not_block_each_other() {
    let test = TestSigner::new();
    test.script("head -c 20000 /dev/zero; cat | wc -c > count; head -c 10000 /dev/zero");
    let request = vec![b'x'; 3 << 20];
    let answer = process::exchange(&test.command(), &request, || false).expect("an answer");
    assert_eq!(answer.len(), 30_000);
    assert_eq!(fs::read_to_string(test.path("count")).expect("read").trim(), (3 << 20).to_string());
    // A program that reads nothing may still answer: its answer is verified.
    test.script("echo unread");
    let answer = process::exchange(&test.command(), &request, || false).expect("an answer");
    assert_eq!(answer.as_slice(), b"unread\n");
}

/// Attack: a key file that names a relative program, with a checksum that matches.
#[test]
fn attack_a_planted_key_file_starts_no_relative_program() {
    let test = TestSigner::new();
    let mut signer = test.enrolled();
    let load = |signer: &ExternalSigner, name: &str| {
        save_external(signer, &test.path(name)).expect("saved");
        MemberKey::load(&test.path(name))
            .map(drop)
            .map_err(|error| error.downcast_ref::<Refusal>().map(|r| r.code))
    };
    assert_eq!(load(&signer, "sound.key"), Ok(()));
    signer.command.program = "signer".into();
    assert_eq!(load(&signer, "planted.key"), Err(Some(error_code::SIGNER_FAILED)));
}
