//! `quorate key`: inference keys for applications.
//!
//! The secret text is generated on this machine and shown once; the cluster stores its hash alone.

use super::Environment;
use super::output::table;
use anyhow::Result;
use clap::Subcommand;
use host::random::fresh_secret_text;
use protocol::api::{CreateKey, KeyView, Page};
use protocol::{Digest, TokenName};

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Create a key and print it once
    #[command(after_help = "Example:\n  export OPENAI_API_KEY=$(quorate key create my-app)")]
    Create {
        /// Name of the key
        name: TokenName,
        /// Requests allowed per minute [default: unlimited]
        #[arg(long)]
        requests_per_minute: Option<u32>,
    },
    /// List keys; their secret texts are not stored
    #[command(after_help = "Example:\n  quorate key list")]
    List,
    /// Revoke a key
    #[command(after_help = "Example:\n  quorate key revoke my-app")]
    Revoke {
        /// Name of the key
        name: TokenName,
    },
}

pub(crate) async fn run(command: KeyCommand, environment: &Environment) -> Result<()> {
    let client = environment.context()?.client()?;
    match command {
        KeyCommand::Create { name, requests_per_minute } => {
            let text = fresh_secret_text("quorate-key");
            let body = CreateKey { name, hash: Digest::of(text.as_bytes()), requests_per_minute };
            let _: serde_json::Value = client.post("/v1/keys", &body).await?;
            let value = serde_json::json!({ "name": body.name, "key": text.as_str() });
            environment.output().print(&value, |_| text.to_string());
        }
        KeyCommand::List => {
            let page: Page<KeyView> = client.get("/v1/keys").await?;
            environment.output().print(&page, |page| {
                let row = |key: &KeyView| {
                    let limit = key.requests_per_minute.map_or("-".into(), |limit| limit.to_string());
                    vec![key.name.to_string(), limit]
                };
                table(&["key", "requests per minute"], page.items.iter().map(row).collect())
            });
        }
        KeyCommand::Revoke { name } => {
            let done: serde_json::Value = client.delete(&format!("/v1/keys/{name}")).await?;
            environment.output().print(&done, |_| format!("revoked key `{name}`"));
        }
    }
    Ok(())
}
