//! Closed-loop clients, the same for both sides: each puts a value, waits for the response, and puts the
//! next.

use super::VALUE_BYTES;
use crate::report::quantile;
use anyhow::Context;
use bytes::Bytes;
use futures::future::BoxFuture;
use std::future::Future;
use std::time::{Duration, Instant};

/// One client's connection.
pub(super) trait Put: Send + 'static {
    /// Puts one value durably.
    fn put(&mut self, key: String, value: Bytes) -> BoxFuture<'_, anyhow::Result<()>>;
}

/// Load of a cluster: number of clients and durations.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) clients: usize,
    /// Measured time, after the warm-up.
    pub(super) length: Duration,
    pub(super) warm_up: Duration,
}

/// Measurements of one round.
#[derive(Debug, Clone, Copy)]
pub(super) struct Measured {
    pub(super) per_second: f64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
}

impl Load {
    /// Connects every client, runs them, and collects the measurements within the measured time.
    pub(super) async fn run<C, F>(&self, connect: impl Fn() -> F) -> anyhow::Result<Measured>
    where
        C: Put,
        F: Future<Output = anyhow::Result<C>>,
    {
        let mut connections = Vec::new();
        for _ in 0..self.clients {
            connections.push(connect().await?);
        }
        let begin = Instant::now() + self.warm_up;
        let end = begin + self.length;
        let spacing = super::KEYS / self.clients as u64;
        let tasks: Vec<_> = (0u64..)
            .zip(connections)
            .map(|(index, connection)| tokio::spawn(put_until(connection, index * spacing, begin, end)))
            .collect();
        let mut times = Vec::new();
        for task in tasks {
            times.extend(task.await.context("a client panicked")??);
        }
        let per_second = times.len() as f64 / self.length.as_secs_f64();
        Ok(Measured { per_second, p50_ms: quantile(&times, 0.5), p99_ms: quantile(&times, 0.99) })
    }
}

/// Returns the milliseconds of every put that ended between `begin` and `end`.
async fn put_until<C: Put>(
    mut client: C,
    first: u64,
    begin: Instant,
    end: Instant,
) -> anyhow::Result<Vec<f64>> {
    let value = Bytes::from(vec![b'v'; VALUE_BYTES]);
    let mut times = Vec::new();
    let mut number = first;
    loop {
        let asked = Instant::now();
        client.put(super::key(number), value.clone()).await?;
        let answered = Instant::now();
        if answered >= end {
            return Ok(times);
        }
        if answered >= begin {
            times.push((answered - asked).as_secs_f64() * 1000.0);
        }
        number += 1;
    }
}
