//! What to do next, as lines that work when pasted: they name what really runs.

use crate::up::cluster::Cluster;
use anyhow::Result;
use protocol::api::{Page, ServiceView};
use protocol::manifest::{Manifest, ServiceManifest, Task};

/// Prints it.
///
/// # Errors
/// When control does not say what runs.
pub(in crate::up) async fn print_farewell(cluster: &Cluster) -> Result<()> {
    let (gateway, layout) = (cluster.gateway(), &cluster.layout);
    let key = layout.api_key().display().to_string();
    let services: Page<ServiceView> = cluster.context()?.client()?.get("/v1/services").await?;
    println!("\nKill any process, edit any byte. Ctrl-C stops everything.\n");
    println!("  chat and embeddings   {gateway}/v1   key in {key}");
    println!("  control API           http://{}/openapi.json", cluster.address("control-1/api"));
    println!("  logs                  {}", layout.root().join("logs").display());
    println!("\n  export QUORATE_CONTEXT={}", layout.context().display());
    println!("  quorate status\n");
    println!("{}\n", example(&gateway, &key, &services.items));
    println!(
        "What is simulated here: the machines (one machine plays all of them) and the members (three key"
    );
    println!(
        "files beside each other). Everything else is real: processes, TLS, signatures, storage, models."
    );
    Ok(())
}

/// A request to a service that answers, one that writes before one that embeds; else how to come to one.
fn example(gateway: &str, key: &str, services: &[ServiceView]) -> String {
    let answering = services.iter().filter(|service| service.ready > 0).filter_map(manifest);
    // `false` comes first.
    let Some(manifest) = answering.min_by_key(|manifest| manifest.task != Task::Generate) else {
        return "  Nothing is served yet:\n  quorate model import DIR --name NAME   then: quorate new service --model NAME > NAME.toml"
            .into();
    };
    let model = &manifest.model.name;
    let (path, body) = match manifest.task {
        Task::Embed => ("embeddings", format!(r#"{{"model":"{model}","input":"What is quorate?"}}"#)),
        // The model of the demonstration has a chat template; of others nothing is known.
        Task::Generate if model.as_str() == "tiny" => (
            "chat/completions",
            format!(
                r#"{{"model":"{model}","temperature":0,"messages":[{{"role":"user","content":"What is three plus four?"}}]}}"#
            ),
        ),
        Task::Generate => {
            ("completions", format!(r#"{{"model":"{model}","prompt":"Once upon a time","max_tokens":32}}"#))
        }
    };
    format!(
        "  curl -s {gateway}/v1/{path} -H \"Authorization: Bearer $(cat {key})\" \\\n    \
         -H 'Content-Type: application/json' \\\n    -d '{body}'"
    )
}

fn manifest(service: &ServiceView) -> Option<&ServiceManifest> {
    match &service.manifest {
        Manifest::Service(manifest) => Some(manifest),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::service_template;
    use protocol::Digest;

    fn service(model: &str, architecture: &str, ready: u32) -> ServiceView {
        let record = crate::testing::model_record(model, architecture);
        let name: protocol::ServiceName = model.parse().expect("a name");
        ServiceView {
            manifest: Manifest::from_toml(&service_template(&name, &record, 1, 2)).expect("valid"),
            name,
            certificate: Digest::of(b"certificate"),
            desired: 1,
            ready,
            ready_current: ready,
            retiring: false,
            slots: vec![],
        }
    }

    #[test]
    fn the_line_asks_what_really_answers() {
        let (mine, embeds) =
            (|ready| service("mine", "llama", ready), |ready| service("minilm", "bert", ready));
        for (services, expected) in [
            (vec![], "quorate model import"),
            (vec![mine(0)], "quorate model import"),
            (vec![mine(0), embeds(2)], r#"/v1/embeddings -H "Authorization: Bearer $(cat KEY)""#),
            (vec![embeds(2), mine(1)], r#""model":"mine","prompt""#),
            (vec![embeds(2), service("tiny", "llama", 1)], r#"/v1/chat/completions"#),
        ] {
            let line = example("http://127.0.0.1:1", "KEY", &services);
            assert!(line.contains(expected), "{line}");
        }
    }
}
