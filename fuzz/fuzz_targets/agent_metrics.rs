//! Fuzz target of a worker's metrics pipe: lines are bounded, found regardless of the boundaries of reads,
//! and either exactly of the expected type or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::limits::METRICS_LINE_BYTES_MAX;
use protocol::worker::WorkerMetrics;
use sandbox::LineSplitter;

fn lines(bytes: &[u8], piece: usize) -> (Vec<Vec<u8>>, u64) {
    let (mut splitter, mut lines) = (LineSplitter::default(), Vec::new());
    for piece in bytes.chunks(piece) {
        splitter.push(piece, |line| lines.push(line.to_vec()));
    }
    (lines, splitter.too_long())
}

fuzz_target!(|bytes: &[u8]| {
    let whole = lines(bytes, bytes.len().max(1));
    assert_eq!(whole, lines(bytes, 7));
    for line in whole.0 {
        assert!(line.len() < METRICS_LINE_BYTES_MAX && !line.contains(&b'\n'));
        if let Ok(metrics) = serde_json::from_slice::<WorkerMetrics>(&line) {
            let again = serde_json::to_vec(&metrics).expect("numbers are JSON");
            assert_eq!(serde_json::from_slice::<WorkerMetrics>(&again).expect("read back"), metrics);
        }
    }
});
