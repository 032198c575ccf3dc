//! The member's key file of a command, and the sharing of models' keys by commands that use it.

use crate::context::Context;
use crate::member_key::MemberKey;
use crate::node::{SharedKeys, share_keys};
use crate::print;
use crate::session::Session;
use anyhow::Result;
use protocol::{Refusal, error_code};
use std::path::PathBuf;

/// Reads the key file that a command names, or else the context's.
pub(super) fn member_key(context: &Context, given: Option<PathBuf>) -> Result<MemberKey> {
    let file = given.or_else(|| context.member_key_file.clone()).ok_or_else(|| {
        let message = "no member key: give --key FILE, or name one in the context";
        Refusal::new(error_code::KEY_FILE_UNUSABLE, message)
    })?;
    MemberKey::load(&file)
}

/// Shares the keys that a member holds, after a command that has used its secret for another purpose. The
/// command has succeeded, so a failure is only noted.
pub(super) async fn share_after(session: &Session, member: &MemberKey) {
    match share_keys(session, member).await {
        Ok(shared) => {
            shared.lines().iter().for_each(print::err);
            shared.notes().iter().for_each(|note| print::err(format_args!("note: {note}")));
        }
        Err(error) => print::err(format_args!(
            "note: models' keys could not be shared ({error:#}); run: quorate node share"
        )),
    }
}

/// Returns the outcome of sharing, for people.
pub(super) fn share_text(shared: &SharedKeys) -> String {
    let mut lines = shared.lines();
    if lines.is_empty() {
        lines.push("no party lacks a key that you can share".into());
    }
    lines.extend(shared.notes().iter().map(|note| format!("note: {note}")));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::SharedKey;

    #[test]
    fn shared_keys_are_listed_and_models_without_a_holder_are_noted() {
        let model = |name: &str| name.parse().expect("a name");
        let mut shared = SharedKeys::default();
        assert_eq!(share_text(&shared), "no party lacks a key that you can share");
        shared.shared =
            vec![SharedKey { model: model("tiny"), with: vec!["node node-4".into(), "member bob".into()] }];
        assert_eq!(share_text(&shared), "shared the key of tiny with node node-4, member bob");
        (shared.closed, shared.keyless) = (vec![model("garbage")], vec![model("lost")]);
        let text = share_text(&shared);
        assert!(text.contains("\nnote: your wrap of the key of garbage does not open"), "{text}");
        assert!(
            text.ends_with("`quorate model forget lost`, and import it again under another name"),
            "{text}"
        );
    }
}
