//! External signer: a program that holds a member's keys, so that no secret is in a file of this machine.
//!
//! The key file names the program, its arguments and the public keys. For each signature the program is
//! started again: it reads one request from its standard input and writes one answer to its standard output,
//! see `signer/message.rs`. `docs/external-signer.md` describes both for its authors. No answer is used
//! before it was verified with the public keys, so a faulty program can refuse a signature and forge none.

mod message;
mod process;

use super::{KeyHolder, MemberKey};
use human_chain::{MemberSigner, Statement, prove_keys, signature_holds};
use message::{AnswerBody, SharedSecretText, SignerOperation, SignerRequest};
use model_store::{ModelKey, SharedSecrets, open_wrap, wrap_key};
use protocol::governance::ProvenMember;
use protocol::keys::{HybridSignature, MemberKeys};
use protocol::model::{KeyWrap, Recipient};
use protocol::{Digest, ErrorCode, MemberId, ModelRoot, Refusal, error_code};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::{Duration, Instant};

/// Time that a program has for one answer: a person reads a proposal on a device and confirms it.
const TIMEOUT: Duration = Duration::from_secs(5 * 60);
/// Maximum number of arguments of a program.
const ARGUMENTS_MAX: usize = 32;
/// Maximum length of the program's path and of each argument in bytes.
const ARGUMENT_BYTES_MAX: usize = 256;

/// Program that holds a member's keys, with its arguments. No shell reads them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SignerCommand {
    /// Absolute path.
    program: String,
    arguments: Vec<String>,
}

impl SignerCommand {
    /// Returns the command of these words: the program and its arguments.
    ///
    /// # Errors
    /// As [`SignerCommand::check`].
    pub(crate) fn new(words: &[String]) -> Result<Self, Refusal> {
        let (program, arguments) = words.split_first().map_or(("", &[][..]), |(first, rest)| (first, rest));
        let command = Self { program: program.to_string(), arguments: arguments.to_vec() };
        command.check().map(|()| command.clone())
    }

    /// Checks the form of the command.
    ///
    /// # Errors
    /// Fails with `signer-failed` if the program's path is not absolute, or the command is too long.
    pub(super) fn check(&self) -> Result<(), Refusal> {
        if !Path::new(&self.program).is_absolute() {
            return Err(self.failed("its path is not absolute; no directory is searched for it"));
        }
        let mut words = self.arguments.iter().chain([&self.program]);
        if self.arguments.len() > ARGUMENTS_MAX || words.any(|word| word.len() > ARGUMENT_BYTES_MAX) {
            let reason = format!(
                "accepted: at most {ARGUMENTS_MAX} arguments, each of at most {ARGUMENT_BYTES_MAX} bytes"
            );
            return Err(self.failed(&reason));
        }
        Ok(())
    }

    fn refusal(&self, code: ErrorCode, reason: &str) -> Refusal {
        let program = crate::terminal::line(&self.program);
        Refusal::new(code, format!("the signer `{program}`: {reason}; nothing was signed"))
    }

    fn failed(&self, reason: &str) -> Refusal {
        self.refusal(error_code::SIGNER_FAILED, reason)
    }

    fn invalid(&self, reason: &str) -> Refusal {
        self.refusal(error_code::SIGNER_INVALID, reason)
    }

    /// Starts the program with one request, and returns its answer.
    fn ask(&self, member: &MemberId, operation: SignerOperation) -> Result<AnswerBody, Refusal> {
        let request = message::encode(&SignerRequest::new(member, operation));
        let started = Instant::now();
        let exchange = || process::exchange(self, &request, || started.elapsed() >= TIMEOUT);
        let answer = blocking(exchange).map_err(|reason| self.failed(&reason))?;
        match message::decode(&answer).map_err(|reason| self.failed(&reason))? {
            AnswerBody::Refused(reason) => {
                let reason: String = crate::terminal::line(&reason).chars().take(200).collect();
                Err(self.failed(&format!("refused: {reason}")))
            }
            answer => Ok(answer),
        }
    }
}

/// Runs a blocking function on a thread that serves tasks, without delaying the other tasks.
fn blocking<T>(act: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    let flavor = Handle::try_current().map(|handle| handle.runtime_flavor());
    if matches!(flavor, Ok(RuntimeFlavor::MultiThread)) { tokio::task::block_in_place(act) } else { act() }
}

/// A member's keys in an external program.
#[derive(Debug)]
pub struct ExternalSigner {
    pub(super) member: MemberId,
    pub(super) command: SignerCommand,
    pub(super) keys: MemberKeys,
}

impl ExternalSigner {
    /// Asks a program for the public keys that it holds, and for the proof that it holds them.
    ///
    /// # Errors
    /// Fails with `signer-failed` or `signer-invalid`.
    pub(crate) fn enrol(member: MemberId, command: SignerCommand) -> Result<(Self, ProvenMember), Refusal> {
        let AnswerBody::Keys(keys) = command.ask(&member, SignerOperation::Keys {})? else {
            return Err(command.invalid("answered with no public keys"));
        };
        let signer = Self { member: member.clone(), command, keys };
        let proven = prove_keys(&signer, member)?;
        Ok((signer, proven))
    }

    /// Returns this signer as the key of its member.
    pub(crate) fn into_key(self) -> MemberKey {
        MemberKey { member: self.member.clone(), signer: KeyHolder::External(Box::new(self)) }
    }

    fn sign(&self, statement: &Statement) -> Result<HybridSignature, Refusal> {
        let answer = self.command.ask(&self.member, SignerOperation::of(statement))?;
        let AnswerBody::Signature(signature) = answer else {
            return Err(self.command.invalid("answered with no signature"));
        };
        if signature_holds(&self.keys, statement.domain, &statement.bytes, &signature) {
            Ok(signature)
        } else {
            Err(self.command.invalid("its signature is of another statement, or by other keys"))
        }
    }

    /// Opens a wrap for this member; none if the wrap is garbage.
    ///
    /// A wrong answer of the program looks like a garbage wrap. The program must therefore open a wrap made
    /// here before the member complains about another member's.
    ///
    /// # Errors
    /// Fails with `signer-failed` if the program does not open wraps, and with `signer-invalid` if it gives
    /// other secrets than those of the wrap.
    pub(super) fn open_wrap(&self, wrap: &KeyWrap) -> Result<Option<ModelKey>, Refusal> {
        if let Some(key) = self.try_open(wrap)? {
            return Ok(Some(key));
        }
        self.check_opens_wraps()?;
        Ok(None)
    }

    /// Checks that the program opens a wrap that was made for its public key here.
    ///
    /// # Errors
    /// As [`ExternalSigner::open_wrap`].
    pub(crate) fn check_opens_wraps(&self) -> Result<(), Refusal> {
        let to = Recipient::Member(self.member.clone());
        let no_key = |error| self.command.invalid(&format!("its encryption key is none ({error})"));
        let key = ModelKey::generate().map_err(no_key)?;
        let root = ModelRoot(Digest(host::random::random_bytes()));
        let wrap = wrap_key(&key, &self.keys.encryption, root, to).map_err(no_key)?;
        match self.try_open(&wrap)? {
            Some(opened) if opened.commitment() == key.commitment() => Ok(()),
            _ => Err(self.command.invalid("does not open a wrap made for its own public key")),
        }
    }

    fn try_open(&self, wrap: &KeyWrap) -> Result<Option<ModelKey>, Refusal> {
        let answer = self.command.ask(&self.member, SignerOperation::Unwrap { wrap })?;
        let AnswerBody::SharedSecrets(SharedSecretText { x25519, ml_kem }) = answer else {
            return Err(self.command.invalid("answered with no shared secrets"));
        };
        let secrets = SharedSecrets { x25519, ml_kem };
        Ok(open_wrap(wrap, &self.keys.encryption, &secrets).ok())
    }
}

impl MemberSigner for ExternalSigner {
    type Signed<T> = Result<T, Refusal>;

    fn public_keys(&self) -> MemberKeys {
        self.keys.clone()
    }

    fn sign_statement<T>(
        &self,
        statement: &Statement,
        complete: impl FnOnce(HybridSignature) -> T,
    ) -> Self::Signed<T> {
        self.sign(statement).map(complete)
    }
}

#[cfg(test)]
pub(crate) mod tests;
