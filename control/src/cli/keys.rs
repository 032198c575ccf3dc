//! Inference keys for applications. The text is made here and shown once; the cluster keeps its hash.

use super::Environment;
use super::output::table;
use crate::session::fresh_secret_text;
use anyhow::Result;
use clap::Subcommand;
use protocol::api::{CreateKey, KeyView, Page};
use protocol::{Digest, TokenName};

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Make a key and print it once
    #[command(after_help = "Example:\n  export OPENAI_API_KEY=$(quorate key create my-app)")]
    Create {
        /// What to call it
        name: TokenName,
        /// Most requests per minute [default: no limit]
        #[arg(long)]
        requests_per_minute: Option<u32>,
    },
    /// List keys; their texts are nowhere
    #[command(after_help = "Example:\n  quorate key list")]
    List,
    /// Shut a key out
    #[command(after_help = "Example:\n  quorate key revoke my-app")]
    Revoke {
        /// Its name
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
            environment.output().print(&done, |_| format!("key `{name}` is shut out"));
        }
    }
    Ok(())
}
