//! `quorate logs`: the log lines of a service's workers.

use super::Environment;
use super::services::POLL_INTERVAL;
use crate::print;
use crate::terminal;
use anyhow::Result;
use clap::Args;
use protocol::ServiceName;
use protocol::api::{LogLine, LogPage};

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  quorate logs minilm -f")]
pub(crate) struct LogsArguments {
    /// Name of the service
    service: ServiceName,
    /// Keep printing new lines as they arrive
    #[arg(short, long)]
    follow: bool,
}

pub(crate) async fn logs(arguments: LogsArguments, environment: &Environment) -> Result<()> {
    let client = environment.context()?.client()?;
    let mut reader = LogReader::default();
    loop {
        let path = format!("/v1/services/{}/logs?after={}", arguments.service, reader.after);
        let Some(lines) = reader.take(client.get(&path).await?) else {
            print::err("note: the leader changed; lines written in between may be missing");
            continue;
        };
        for line in &lines {
            environment.output().print(line, |line| {
                let text = terminal::line(&line.text);
                format!("{} {}/{} {text}", human_chain::show_time(line.at), line.node, line.slot)
            });
        }
        if print::is_closed() || (lines.is_empty() && !arguments.follow) {
            return Ok(());
        }
        if lines.is_empty() {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}

/// Read position in a service's log.
#[derive(Debug, Default)]
struct LogReader {
    epoch: Option<u64>,
    after: u64,
}

impl LogReader {
    /// Returns the lines of a page, or none if another leader answered than before.
    ///
    /// Each leader numbers its lines from the beginning. The page was requested with the earlier leader's
    /// number, so it must be requested again.
    fn take(&mut self, page: LogPage) -> Option<Vec<LogLine>> {
        if self.epoch.replace(page.epoch).is_some_and(|before| before != page.epoch) {
            self.after = 0;
            return None;
        }
        self.after = page.items.last().map_or(self.after, |line| line.sequence);
        Some(page.items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::{Millis, SlotIndex};

    #[test]
    fn following_starts_over_when_another_leader_answers() {
        let line = |sequence, text: &str| LogLine {
            sequence,
            at: Millis(1),
            node: "node-1".parse().expect("a name"),
            slot: SlotIndex(0),
            text: text.into(),
        };
        let mut reader = LogReader::default();
        let mut read = |after, epoch, items: Vec<LogLine>| {
            assert_eq!(reader.after, after, "what is asked for");
            let lines = reader.take(LogPage { epoch, items })?;
            Some(lines.into_iter().map(|line| line.text).collect::<Vec<_>>())
        };
        assert_eq!(read(0, 3, vec![line(1, "one"), line(2, "two")]), Some(vec!["one".into(), "two".into()]));
        assert_eq!(read(2, 3, vec![]), Some(vec![]));
        assert_eq!(
            read(2, 5, vec![line(3, "the new leader's third")]),
            None,
            "the first two were not asked for"
        );
        assert_eq!(read(0, 5, vec![line(1, "after")]), Some(vec!["after".into()]));
        assert_eq!(read(1, 5, vec![]), Some(vec![]));
    }
}
