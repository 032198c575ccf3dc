//! Commands whose reader closes its pipe, or whose output has no space: what was asked for is done.

use crate::circle::TestCircle;
use crate::member::{Desk, Ran, now, view};
use crate::member_attacks::{deployment, words_of};
use protocol::api::{LogLine, LogPage};
use protocol::{Millis, SlotIndex};
use std::fs::File;
use std::process::{Command, Stdio};

/// Gives a command a pipe for this stream whose reader has gone before the command starts.
fn close(stream: fn(&mut Command, Stdio)) -> impl Fn(&mut Command) {
    move |command| {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        stream(command, writer.into());
    }
}

fn stdout(command: &mut Command, writer: Stdio) {
    command.stdout(writer);
}

fn stderr(command: &mut Command, writer: Stdio) {
    command.stderr(writer);
}

async fn desk() -> Desk {
    let mut world = TestCircle::new(vec![], &["127.0.0.1:1".into()], now());
    world.deploy(&crate::node::small("chat"));
    Desk::new(world).await
}

fn died(ran: &Ran) -> bool {
    ran.status.is_none_or(|status| status > 2)
}

/// A vote is cast although its reader, such as `head`, has gone: the text that is printed first finds no
/// reader, and neither does the outcome.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vote_is_not_lost_with_the_reader_of_its_output() {
    let desk = desk().await;
    let proposal = desk.proposal(deployment("other"), "run it");
    desk.stub().proposals = vec![view(&proposal, vec![])];
    let (id, words) = (proposal.id().to_string(), words_of(&proposal));
    let approve = ["approve", &id, "--words", &words];
    let both = |command: &mut Command| {
        close(stdout)(command);
        close(stderr)(command);
    };
    let closings: [&dyn Fn(&mut Command); 3] = [&close(stdout), &close(stderr), &both];
    for (number, close) in closings.into_iter().enumerate() {
        let ran = desk.run_as(&approve, close).await;
        assert_eq!(ran.status, Some(0), "{ran:?}");
        assert_eq!(desk.stub().ballots.len(), number + 1, "the ballot was cast");
    }
    // The positive control: with its reader, the same command prints the text and the outcome.
    let ran = desk.run(&approve).await;
    assert!(ran.stdout.starts_with("recorded: approve by alice"), "{}", ran.stdout);
    assert!(ran.stderr.starts_with("| Start the service other"), "{}", ran.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_command_panics_when_its_reader_has_gone() {
    let desk = desk().await;
    let line = |sequence| LogLine {
        sequence,
        at: Millis(1),
        node: "node-1".parse().unwrap(),
        slot: SlotIndex(0),
        text: "a line".into(),
    };
    desk.stub().logs = LogPage { epoch: 1, items: (1..=3).map(line).collect() };
    let commands: [&[&str]; 8] = [
        &["review"],
        &["circle", "show"],
        &["circle", "history"],
        &["halts"],
        &["explain", "quorum-not-reached"],
        &["--help"],
        &["review", "zz"],
        // Without a reader it would print forever.
        &["logs", "chat", "--follow"],
    ];
    for words in commands {
        let closings: &[&dyn Fn(&mut Command)] = match words.contains(&"--follow") {
            true => &[&close(stdout)],
            false => &[&close(stdout), &close(stderr)],
        };
        for close in closings {
            let ran = desk.run_as(words, close).await;
            assert!(!died(&ran) && !ran.stderr.contains("panicked"), "{words:?}: {ran:?}");
        }
    }
}

/// A full disk is not a reader that has gone: the vote is cast, and the command says that its output is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_output_that_has_no_space_is_reported_after_the_act() {
    let desk = desk().await;
    let proposal = desk.proposal(deployment("other"), "run it");
    desk.stub().proposals = vec![view(&proposal, vec![])];
    let (id, words) = (proposal.id().to_string(), words_of(&proposal));
    let full = |command: &mut Command| {
        command.stdout(File::options().write(true).open("/dev/full").unwrap());
    };
    let ran = desk.run_as(&["approve", &id, "--words", &words], full).await;
    assert_eq!((ran.status, desk.stub().ballots.len()), (Some(1), 1));
    let expected =
        "error: the command has ended, and its output could not be written: No space left on device";
    assert!(ran.stderr.lines().any(|line| line.starts_with(expected)), "{}", ran.stderr);
}
