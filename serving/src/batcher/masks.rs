//! The thread that computes the masks of grammars while the engine computes a step.
//!
//! A mask that is not ready when its token is drawn is computed then: the thread only saves time. It starts
//! with the first request that has a grammar.

use crate::engine::grammar::GrammarState;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

/// The thread, once it is needed. It ends when this is dropped.
#[derive(Debug, Default)]
pub(super) struct MaskThread(Option<Sender<Arc<GrammarState>>>);

impl MaskThread {
    /// Computes these masks beside the caller. Without a thread, because none could be started, the sampler
    /// computes them.
    pub(super) fn prepare<'g>(&mut self, states: impl Iterator<Item = &'g Arc<GrammarState>>) {
        for state in states {
            if self.0.is_none() {
                self.0 = start();
            }
            let Some(sender) = &self.0 else { return };
            // The thread ends only with its sender.
            let _ = sender.send(Arc::clone(state));
        }
    }
}

fn start() -> Option<Sender<Arc<GrammarState>>> {
    let (sender, states): (Sender<Arc<GrammarState>>, Receiver<Arc<GrammarState>>) = channel();
    let run = move || states.into_iter().for_each(|state| state.prepare());
    let thread = std::thread::Builder::new().name("masks".to_owned()).spawn(run);
    match thread {
        Ok(_) => Some(sender),
        Err(error) => {
            tracing::warn!(%error, "masks are computed by the sampler");
            None
        }
    }
}
