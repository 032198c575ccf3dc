//! A worker that exhausts its resources, to show that its lease ends it all the same.

use crate::own;
use protocol::worker::WORKER_METRICS_FD;
use std::fs::File;
use std::hint::{black_box, spin_loop};
use std::io::{self, Write};

/// Maximum number of threads and descriptors that it tries for: more than any limit of the tests.
const MANY: usize = 4096;
/// Memory that is allocated and kept. The tests allow 64 MiB, of which threads and pipes take some.
const HELD_BYTES: usize = 48 << 20;
/// Memory that is allocated and freed in an endless loop: the rest of the allowance.
const CHURNED_BYTES: usize = 4 << 20;

/// Exhausts resources given by name, separated by commas: `memory`, `descriptors`, `metrics`, `processes`,
/// `cpu`, `logs`. Then prints `exhausted` and continues forever.
pub(crate) fn run(resources: &str) -> io::Result<()> {
    let mut held = Vec::new();
    let mut descriptors: Vec<File> = Vec::new();
    let wants = |name: &str| resources.split(',').any(|wanted| wanted == name);
    if wants("memory") {
        held = vec![1_u8; HELD_BYTES];
    }
    if wants("metrics") {
        // Fills the pipe until it is full. Writes do not block: the sandbox passes it so.
        let mut pipe = own(WORKER_METRICS_FD);
        while pipe.write_all(&[b'x'; 4096]).is_ok() {}
        std::mem::forget(pipe);
    }
    let mut spinning = 1;
    if wants("processes") {
        let work = if wants("cpu") { spin } else { park };
        while spinning < MANY && std::thread::Builder::new().stack_size(1 << 16).spawn(work).is_ok() {
            spinning += 1;
        }
    }
    if wants("descriptors") {
        while let Ok(file) = File::open("/dev/null") {
            descriptors.push(file);
        }
    }
    println!("exhausted {resources}: {spinning} threads, {} descriptors", descriptors.len());
    loop {
        if wants("memory") {
            black_box(vec![1_u8; CHURNED_BYTES]);
        }
        if wants("logs") {
            println!("{}", "a line without any meaning ".repeat(32));
        }
        black_box((&held, &descriptors));
        if resources.is_empty() {
            park();
        }
    }
}

fn spin() {
    loop {
        spin_loop();
    }
}

fn park() {
    loop {
        std::thread::park();
    }
}
