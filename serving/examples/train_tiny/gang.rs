//! The gang of ranks that train together. Rank 0 adds the gradients of all in the order of the ranks, and
//! sends the sums back, so that every rank has the same bits, and every run of as many ranks has them too.

use anyhow::{Context as _, Result, ensure};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::str::FromStr;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Time for all ranks to meet.
const MEET_LIMIT: Duration = Duration::from_secs(60);
/// Pause between two attempts to reach rank 0.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// This rank's links to the others.
pub(crate) struct Gang {
    pub(crate) rank: usize,
    ranks: usize,
    /// Of rank 0: to each other rank, in their order. Of another rank: to rank 0.
    links: Vec<TcpStream>,
}

impl Gang {
    /// Returns the gang of a process that trains alone.
    pub(crate) fn alone() -> Self {
        Self { rank: 0, ranks: 1, links: Vec::new() }
    }

    /// Meets the other ranks, as `RANK`, `WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT` say; a process without
    /// them is alone.
    pub(crate) fn from_environment() -> Result<Self> {
        let Ok(ranks) = std::env::var("WORLD_SIZE") else { return Ok(Self::alone()) };
        let (ranks, rank) = (number::<usize>("WORLD_SIZE", &ranks)?, variable::<usize>("RANK")?);
        ensure!(rank < ranks, "rank {rank} is none of {ranks}");
        let port = variable::<u16>("MASTER_PORT")?;
        let links = match rank {
            0 => accept(&TcpListener::bind(("0.0.0.0", port)).context("listen for the other ranks")?, ranks)?,
            _ => vec![reach(&std::env::var("MASTER_ADDR").context("MASTER_ADDR")?, port, rank)?],
        };
        Ok(Self { rank, ranks, links })
    }

    pub(crate) fn is_alone(&self) -> bool {
        self.ranks == 1
    }

    /// Returns this rank's share of `count` items. The shares follow each other in the order of the ranks.
    pub(crate) fn share(&self, count: usize) -> Range<usize> {
        count * self.rank / self.ranks..count * (self.rank + 1) / self.ranks
    }

    /// Replaces the values of every rank with their sums, added in the order of the ranks.
    pub(crate) fn sum(&mut self, values: &mut [f32]) -> Result<()> {
        if self.rank > 0 {
            write(&mut self.links[0], values).context("send gradients to rank 0")?;
            return read(&mut self.links[0], values).context("receive sums from rank 0");
        }
        let mut theirs = vec![0.0; values.len()];
        for (link, rank) in self.links.iter_mut().zip(1..) {
            read(link, &mut theirs).with_context(|| format!("receive gradients from rank {rank}"))?;
            values.iter_mut().zip(&theirs).for_each(|(sum, value)| *sum += value);
        }
        for (link, rank) in self.links.iter_mut().zip(1..) {
            write(link, values).with_context(|| format!("send sums to rank {rank}"))?;
        }
        Ok(())
    }
}

fn variable<T: FromStr>(name: &str) -> Result<T> {
    number(name, &std::env::var(name).with_context(|| name.to_string())?)
}

fn number<T: FromStr>(name: &str, text: &str) -> Result<T> {
    text.parse().ok().with_context(|| format!("{name} is `{text}`, not a number"))
}

/// Accepts a link from each other rank; each begins with its number.
fn accept(listener: &TcpListener, ranks: usize) -> Result<Vec<TcpStream>> {
    let mut links: Vec<Option<TcpStream>> = (1..ranks).map(|_| None).collect();
    for _ in 1..ranks {
        let (mut link, _) = listener.accept()?;
        link.set_nodelay(true)?;
        let mut rank = [0; 4];
        link.read_exact(&mut rank)?;
        let rank = u32::from_le_bytes(rank) as usize;
        let place = rank.checked_sub(1).and_then(|place| links.get_mut(place));
        let place = place.with_context(|| format!("rank {rank} is none of {ranks}"))?;
        ensure!(place.is_none(), "two processes are rank {rank}");
        *place = Some(link);
    }
    Ok(links.into_iter().flatten().collect())
}

fn reach(host: &str, port: u16, rank: usize) -> Result<TcpStream> {
    let began = Instant::now();
    let mut link = loop {
        match TcpStream::connect((host, port)) {
            Ok(link) => break link,
            Err(error) if began.elapsed() > MEET_LIMIT => {
                return Err(error).with_context(|| format!("reach rank 0 at {host}:{port}"));
            }
            Err(_) => sleep(RETRY_PAUSE),
        }
    };
    link.set_nodelay(true)?;
    link.write_all(&u32::try_from(rank)?.to_le_bytes())?;
    Ok(link)
}

fn write(link: &mut TcpStream, values: &[f32]) -> std::io::Result<()> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    link.write_all(&bytes)
}

fn read(link: &mut TcpStream, values: &mut [f32]) -> std::io::Result<()> {
    let mut bytes = vec![0; 4 * values.len()];
    link.read_exact(&mut bytes)?;
    for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *value = f32::from_le_bytes(*bytes);
    }
    Ok(())
}
