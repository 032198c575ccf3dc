//! Tokenization on two dedicated threads: one for short texts, one for long ones.
//!
//! Grammars are compiled on a third one, so that no text waits for them.
//!
//! A tokenizer takes about a second per megabyte of text and hundreds of bytes of memory per byte. It
//! therefore runs neither on the threads that answer requests, tickets and polls, nor twice in parallel for
//! long texts. A short text never waits for a long one.
//!
//! A text whose caller has left is skipped if it is still queued; one in progress is completed and discarded.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::oneshot;

/// Longest text of the first thread, in bytes: 16 thousand tokens of English, some tens of milliseconds.
pub(super) const SHORT_BYTES_MAX: usize = 64 * 1024;

/// Stack of the thread for grammars: schemas are read by recursion, to the depth that JSON may have.
const GRAMMAR_STACK_BYTES: usize = 16 * 1024 * 1024;

/// The threads. They end when this is dropped. Their queues are bounded by the limit on waiting requests.
#[derive(Debug)]
pub(super) struct Tokenizers {
    short: Sender<TokenizerTask>,
    long: Sender<TokenizerTask>,
    grammars: Sender<TokenizerTask>,
}

type TokenizerTask = Box<dyn FnOnce() + Send>;

impl Tokenizers {
    /// Starts the threads.
    pub(super) fn start() -> io::Result<Self> {
        Ok(Self {
            short: start("tokenize-short", None)?,
            long: start("tokenize-long", None)?,
            grammars: start("compile-grammar", Some(GRAMMAR_STACK_BYTES))?,
        })
    }

    /// Runs `work` over texts of this many bytes in total; `None` when the thread is gone. `work` receives a
    /// function that reports whether the caller has left. Dropping the future removes the job from the queue.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce(&dyn Fn() -> bool) -> T + Send + 'static,
    ) -> Option<T> {
        run_on(if bytes <= SHORT_BYTES_MAX { &self.short } else { &self.long }, work).await
    }

    /// Compiles a grammar as [`Self::run`] tokenizes a text.
    pub(super) async fn compile<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Fn() -> bool) -> T + Send + 'static,
    ) -> Option<T> {
        run_on(&self.grammars, work).await
    }
}

async fn run_on<T: Send + 'static>(
    thread: &Sender<TokenizerTask>,
    work: impl FnOnce(&dyn Fn() -> bool) -> T + Send + 'static,
) -> Option<T> {
    let (reply, done) = oneshot::channel();
    let job = move || {
        if !reply.is_closed() {
            let outcome = work(&|| reply.is_closed());
            // The caller may have dropped the receiver; the tokens are then discarded.
            let _ = reply.send(outcome);
        }
    };
    thread.send(Box::new(job)).ok()?;
    done.await.ok()
}

fn start(name: &str, stack_bytes: Option<usize>) -> io::Result<Sender<TokenizerTask>> {
    assert!(name.len() <= 15, "Linux cuts the name of a thread after 15 bytes");
    let (sender, jobs): (Sender<TokenizerTask>, Receiver<TokenizerTask>) = channel();
    let mut thread = std::thread::Builder::new().name(name.to_owned());
    if let Some(bytes) = stack_bytes {
        thread = thread.stack_size(bytes);
    }
    thread.spawn(move || jobs.into_iter().for_each(|job| job()))?;
    Ok(sender)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// Tokenizes a long text until the sender is dropped.
    async fn blocked(tokenizers: &Arc<Tokenizers>) -> (Sender<()>, tokio::task::JoinHandle<Option<()>>) {
        let (release, wait) = channel::<()>();
        let (begun, has_begun) = oneshot::channel();
        let tokenizers = tokenizers.clone();
        let running = tokio::spawn(async move {
            let work = move |_: &dyn Fn() -> bool| {
                begun.send(()).expect("the test waits");
                let _ = wait.recv();
            };
            tokenizers.run(SHORT_BYTES_MAX + 1, work).await
        });
        has_begun.await.expect("it begins");
        (release, running)
    }

    #[tokio::test]
    async fn a_short_text_does_not_wait_for_a_long_one() {
        let tokenizers = Arc::new(Tokenizers::start().expect("threads"));
        let (release, long) = blocked(&tokenizers).await;
        let short: Option<u32> = tokenizers.run(SHORT_BYTES_MAX, |_| 7).await;
        assert_eq!(short, Some(7));
        assert!(!long.is_finished(), "the long one is still at it");
        drop(release);
        assert_eq!(long.await.expect("no panic"), Some(()));
    }

    #[tokio::test]
    async fn an_abandoned_text_is_not_tokenized() {
        let tokenizers = Arc::new(Tokenizers::start().expect("threads"));
        let (release, long) = blocked(&tokenizers).await;
        let runs = Arc::new(AtomicU32::new(0));
        let counted = runs.clone();
        let mut abandoned = Box::pin(tokenizers.run(SHORT_BYTES_MAX + 1, move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
        }));
        assert!(futures::poll!(abandoned.as_mut()).is_pending());
        drop(abandoned);
        drop(release);
        long.await.expect("no panic");
        let last = tokenizers.run(SHORT_BYTES_MAX + 1, |is_abandoned| is_abandoned()).await;
        assert_eq!((last, runs.load(Ordering::Relaxed)), (Some(false), 0));
    }
}
